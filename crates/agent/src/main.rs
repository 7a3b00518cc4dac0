//! `rackswarm-agent`: see the library for what it does.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use agent::args::{self, Mode, Trial};
use agent::run::{Options, Place};
use agent::{Error, Watchdog, console, init, monitor, run};
use fleet::disk::Disk;

/// Longer than any single wait inside, an operator's script of an hour included.
const GUARD: Duration = Duration::from_secs(70 * 60);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mode = match args::parse(words.clone()) {
        // The kernel hands words of its command line that nobody knows to its first process.
        Ok(Mode::Help) if words.is_empty() && init::is_first_process() => init::supervise(),
        Err(_) if init::is_first_process() => init::supervise(),
        Ok(mode) => mode,
        Err(error) => {
            eprintln!("rackswarm-agent: {error}");
            return ExitCode::from(2);
        }
    };
    console::open();
    let outcome = match mode {
        Mode::Help => {
            print!("{}", args::HELP);
            return ExitCode::SUCCESS;
        }
        Mode::Version => {
            println!("rackswarm-agent {}", agent::VERSION);
            return ExitCode::SUCCESS;
        }
        Mode::Monitor { config } => watch_over(&config),
        Mode::Run => provision_machine(),
        Mode::Trial(trial) => provision_files(trial),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn watch_over(config: &Path) -> Result<(), Error> {
    let config = monitor::read_config(config)?;
    runtime(tokio::runtime::Builder::new_current_thread())?.block_on(monitor::run(config))
}

fn provision_machine() -> Result<(), Error> {
    init::keep_panics();
    let line = std::fs::read_to_string("/proc/cmdline").map_err(|source| Error::Io {
        action: "read",
        path: "/proc/cmdline".into(),
        source,
    })?;
    let watchdog = Watchdog::default();
    watchdog.guard(GUARD, || init::give_up(&format!("nothing went forward for {} min", GUARD.as_secs() / 60)));
    provision(Options::from_kernel_line(&line)?, &watchdog)
}

fn provision_files(trial: Trial) -> Result<(), Error> {
    let disks = match &trial.disk_list {
        Some(list) => read_disks(list)?,
        None => trial.disk_files.iter().map(|file| disk_of_file(file)).collect::<Result<_, _>>()?,
    };
    let options = Options {
        place: Place::Trial { disks, listen: trial.listen },
        server: trial.server,
        token: trial.token,
        mac: trial.mac,
        post: trial.post,
        listen: Duration::ZERO,
        check: false,
        booted: trial.booted,
    };
    provision(options, &Watchdog::default())
}

fn provision(options: Options, watchdog: &Watchdog) -> Result<(), Error> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2);
    // Dropping the runtime waits for blocking work, so nothing is written or mounted when this returns.
    runtime(builder)?.block_on(run::run(options, watchdog))
}

fn runtime(mut builder: tokio::runtime::Builder) -> Result<tokio::runtime::Runtime, Error> {
    builder.enable_all().build().map_err(|error| Error::Defect(error.to_string()))
}

fn read_disks(list: &Path) -> Result<Vec<Disk>, Error> {
    let failed = |source| Error::Io { action: "read", path: list.to_owned(), source };
    let text = std::fs::read(list).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|error| failed(error.into()))
}

/// A file in place of a disk; its name is its serial number.
fn disk_of_file(file: &Path) -> Result<Disk, Error> {
    let failed = |source| Error::Io { action: "measure", path: file.to_owned(), source };
    let size_bytes = std::fs::metadata(file).map_err(failed)?.len();
    let serial = file.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(Disk { path: file.display().to_string(), size_bytes, serial, ..Disk::default() })
}
