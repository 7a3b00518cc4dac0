//! `qemu:/path/to/vm.toml` is a virtual machine of the lab.
//!
//! There is no supervising process: QEMU runs detached, and whether a machine is on is read from its pid file and from
//! `/proc/PID/cmdline`. The standing boot order is disk first, network second. A network boot is kept in a file until the
//! next power-on, which starts QEMU with the network card in front and at once puts it behind the disks again through
//! QMP: `bootindex` may be changed while a machine runs, QEMU hands the new order to the guest at the *next* reset, and
//! both SeaBIOS 1.16 and edk2 2022.11 read it then (tried with both: the first start asks the network, a reset asks the
//! disk). So even a guest that restarts itself finds its disk first, as with a one-time override of a real controller.

mod command;
mod definition;
mod process;
mod qmp;

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustix::fs::FlockOperation;
use tokio::time::{Instant, sleep};

pub use definition::{Disk, FIRMWARE_CODE, FIRMWARE_VARIABLES, Firmware, Machine, StandingOrder};

use self::process::Process;
use crate::{Address, BootDevice, Driver, Error, Outcome, PowerDriver, Result, State};

pub(crate) const DRIVER: Driver = Driver {
    scheme: "qemu",
    help: "a QEMU machine on this host, described by a TOML file",
    example: "qemu:/run/rackswarm-lab/node1/vm.toml",
    limit: Duration::from_secs(60),
    controller: |address| address.place().to_owned(),
    at_once: 1,
    network_boot: true,
    by_hand: false,
    parse,
};

/// How long QEMU may take to end after it was asked to.
const QUIT_LIMIT: Duration = Duration::from_secs(3);
/// How long the kernel may take to end a process that was killed; a loaded host can need seconds.
const KILL_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

struct Qemu {
    path: PathBuf,
}

fn parse(address: &mut Address) -> Result<Box<dyn PowerDriver>> {
    let path = PathBuf::from(address.place());
    if !path.is_absolute() {
        return Err(address.wrong("the machine's file needs an absolute path"));
    }
    Ok(Box::new(Qemu { path }))
}

impl Qemu {
    fn target(&self) -> String {
        format!("virtual machine {}", self.path.display())
    }

    /// Reads the definition anew each time: the lab may have changed it while the machine was off.
    async fn load(&self) -> Result<Machine> {
        let text = tokio::fs::read_to_string(&self.path)
            .await
            .map_err(|error| Error::refused(&self.target(), format!("its file cannot be read: {error}")))?;
        Machine::from_toml(&text).map_err(|why| Error::refused(&self.target(), why))
    }

    /// Loads the definition and holds the machine's lock, so that two callers never start it twice.
    async fn locked(&self) -> Result<(Machine, std::fs::File)> {
        let machine = self.load().await?;
        let trouble =
            |error: std::io::Error| Error::refused(&self.target(), format!("its run folder cannot be used: {error}"));
        std::fs::create_dir_all(&machine.run_dir).map_err(trouble)?;
        let file = std::fs::File::create(machine.lock_file()).map_err(trouble)?;
        while let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(trouble(error.into()));
            }
            sleep(POLL).await;
        }
        Ok((machine, file))
    }

    async fn start(&self, machine: &Machine) -> Result<()> {
        if Process::find(machine).is_some() {
            return Ok(());
        }
        let first = next_boot(machine);
        self.prepare_files(machine).await?;
        self.launch(machine, first).await?;
        // QEMU refuses an index that a device has already, even the device's own.
        if first == BootDevice::Network
            && machine.order != StandingOrder::Network
            && let Err(error) = self.restore_order(machine).await
        {
            self.stop(machine).await?;
            return Err(error);
        }
        forget_next_boot(machine)
            .map_err(|error| Error::refused(&self.target(), format!("cannot forget its one-time boot: {error}")))
    }

    /// Each UEFI machine needs a private copy of the variable store.
    async fn prepare_files(&self, machine: &Machine) -> Result<()> {
        let trouble =
            |path: &Path, error: std::io::Error| Error::refused(&self.target(), format!("{}: {error}", path.display()));
        if let Err(error) = std::fs::remove_file(machine.qmp_socket())
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(trouble(&machine.qmp_socket(), error));
        }
        let variables = machine.variables_file();
        if machine.firmware.is_uefi() && !variables.exists() {
            tokio::fs::copy(&machine.firmware_variables, &variables).await.map_err(|error| {
                trouble(
                    &machine.firmware_variables,
                    std::io::Error::new(error.kind(), format!("{error}; Debian has it in package ovmf")),
                )
            })?;
        }
        Ok(())
    }

    /// Runs QEMU, which detaches itself once the machine is built; its own complaint becomes the error.
    async fn launch(&self, machine: &Machine, first: BootDevice) -> Result<()> {
        let line = command::line(machine, first);
        let output = tokio::process::Command::new(&line[0])
            .args(&line[1..])
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| Error::refused(&self.target(), format!("cannot run {}: {error}", line[0])))?;
        if output.status.success() && Process::find(machine).is_some() {
            tracing::info!(machine = machine.name, %first, "virtual machine started");
            return Ok(());
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(Error::refused(&self.target(), format!("QEMU did not start ({}): {}", output.status, complaint.trim())))
    }

    async fn restore_order(&self, machine: &Machine) -> Result<()> {
        qmp::set_boot_index(&machine.qmp_socket(), command::CARD, command::standing_card_index(machine)).await.map_err(
            |error| Error::transient(&self.target(), format!("the standing boot order could not be restored: {error}")),
        )
    }

    async fn stop(&self, machine: &Machine) -> Result<()> {
        let Some(process) = Process::find(machine) else { return Ok(()) };
        if qmp::quit(&machine.qmp_socket()).await.is_ok() && process.wait(Instant::now() + QUIT_LIMIT).await {
            return Ok(());
        }
        process.kill().map_err(|error| {
            Error::refused(&self.target(), format!("process {} cannot be ended: {error}", process.id()))
        })?;
        if process.wait(Instant::now() + KILL_LIMIT).await {
            return Ok(());
        }
        Err(Error::transient(&self.target(), format!("process {} does not end although it was killed", process.id())))
    }
}

/// The device that the next start looks at first.
fn next_boot(machine: &Machine) -> BootDevice {
    if machine.next_boot_file().exists() { BootDevice::Network } else { BootDevice::Disk }
}

fn forget_next_boot(machine: &Machine) -> std::io::Result<()> {
    match std::fs::remove_file(machine.next_boot_file()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl PowerDriver for Qemu {
    fn state(&self) -> BoxFuture<'_, Result<State>> {
        Box::pin(async {
            let machine = self.load().await?;
            Ok(if Process::find(&machine).is_some() { State::On } else { State::Off })
        })
    }

    fn on(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async {
            let (machine, _lock) = self.locked().await?;
            self.start(&machine).await?;
            Ok(Outcome::Done)
        })
    }

    fn off(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async {
            let (machine, _lock) = self.locked().await?;
            self.stop(&machine).await?;
            Ok(Outcome::Done)
        })
    }

    fn cycle(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async {
            let (machine, _lock) = self.locked().await?;
            self.stop(&machine).await?;
            self.start(&machine).await?;
            Ok(Outcome::Done)
        })
    }

    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async move {
            let (machine, _lock) = self.locked().await?;
            match device {
                BootDevice::Network => std::fs::write(machine.next_boot_file(), "network\n"),
                BootDevice::Disk => forget_next_boot(&machine),
            }
            .map_err(|error| Error::refused(&self.target(), format!("cannot keep its one-time boot: {error}")))?;
            Ok(Outcome::Done)
        })
    }
}
