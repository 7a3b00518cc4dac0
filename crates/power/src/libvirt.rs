//! `libvirt:NAME?uri=qemu:///system` is a virtual machine of a libvirt host, driven through `virsh`.
//!
//! libvirt has no boot order for one start. The driver writes the wanted order into the machine's definition, with the
//! standing one beside it as metadata, and puts the standing one back as soon as the machine runs. A guest that restarts
//! itself would still meet the order it was started with, so on QEMU the running machine's order is changed as well.
//!
//! With `boot=kernel` no network boot is needed: libvirt hands our kernel to the machine for one start. Its definition
//! stays as it is, because the machine is created from a copy; and as QEMU would start the same kernel again after a
//! restart of the guest, the copy says that the machine goes off then.

mod set;
mod virsh;
mod xml;

use std::time::Duration;

use futures_util::future::BoxFuture;

use self::virsh::Virsh;
use crate::gate::Gate;
use crate::{Address, BootDevice, Driver, Error, Kernel, NextBoot, Outcome, PowerDriver, Result, State, settle};

pub(crate) use set::SET;

pub(crate) const DRIVER: Driver = Driver {
    scheme: "libvirt",
    help: "a virtual machine of a libvirt host, through virsh: uri=URI (default qemu:///system) call_seconds=1..120 \
           settle_seconds=1..120 boot=network|kernel (how it gets our kernel: by a network boot, or from the libvirt of this host)",
    example: "libvirt:web1?uri=qemu:///system",
    limit: Duration::from_secs(180),
    controller: |address| address.peek("uri").unwrap_or(virsh::DEFAULT_URI).to_owned(),
    at_once: 4,
    network_boot: true,
    by_hand: false,
    parse,
};

const POLL: Duration = Duration::from_millis(200);

struct Domain {
    virsh: Virsh,
    name: String,
    settle_limit: Duration,
    hands_kernel: bool,
}

fn parse(address: &mut Address) -> Result<Box<dyn PowerDriver>> {
    let name = address.place().to_owned();
    if !fine_name(&name) {
        return Err(address.wrong("the machine's name is missing, starts with a dash or has a space"));
    }
    let settle_limit = Duration::from_secs(address.number("settle_seconds", 1..=120)?.unwrap_or(30));
    let virsh = Virsh::take(address)?;
    let hands_kernel = hands_kernel(address, &virsh)?;
    Ok(Box::new(Domain { virsh, name, settle_limit, hands_kernel }))
}

/// Takes `boot=`.
fn hands_kernel(address: &mut Address, virsh: &Virsh) -> Result<bool> {
    let wanted = address.word("boot", &[("network", false), ("kernel", true)])?.unwrap_or(false);
    if wanted && !virsh.is_local() {
        return Err(address.wrong("`boot=kernel` needs the libvirt of this host, where kernel and initramfs are"));
    }
    Ok(wanted)
}

/// A name that is no option of virsh and no part of an address.
fn fine_name(name: &str) -> bool {
    crate::address::plain(name) && !name.contains(['/', '?', '&'])
}

impl Domain {
    fn target(&self) -> String {
        format!("libvirt machine {} on {}", self.name, self.virsh.uri)
    }

    async fn power_state(&self) -> Result<State> {
        let word = self.virsh.run(&["domstate", &self.name]).await?;
        Ok(state_of(word.trim()))
    }

    async fn definition(&self) -> Result<String> {
        self.virsh.run(&["dumpxml", "--inactive", "--security-info", &self.name]).await
    }

    async fn define(&self, xml: &str) -> Result<()> {
        self.virsh.feed(&["define", "/dev/stdin"], xml).await.map(drop)
    }

    async fn switch(&self, word: &str, wanted: State) -> Result<()> {
        let command = [word, self.name.as_str()];
        if settle::switch(wanted, self.virsh.run(&command), || self.power_state(), self.settle_limit, POLL).await? {
            return Ok(());
        }
        Err(Error::transient(
            &self.target(),
            format!(
                "`virsh {word}` went well, but {} s later it is not {wanted}; look at the host's log",
                self.settle_limit.as_secs()
            ),
        ))
    }

    async fn restart(&self) -> Result<()> {
        self.switch("destroy", State::Off).await?;
        self.start().await
    }

    /// Starts it from a copy of its definition that has this kernel.
    async fn restart_with(&self, kernel: &Kernel) -> Result<()> {
        self.switch("destroy", State::Off).await?;
        let definition = self.definition().await?;
        if let Some(standing) = self.wrong(xml::standing(&definition))? {
            self.define(&standing).await?;
        }
        let copy = self.wrong(xml::with_kernel(&definition, kernel))?;
        let create = self.virsh.feed(&["create", "/dev/stdin"], &copy);
        if settle::switch(State::On, create, || self.power_state(), self.settle_limit, POLL).await? {
            return Ok(());
        }
        Err(Error::transient(
            &self.target(),
            format!(
                "`virsh create` went well, but {} s later it is not on; can QEMU read {}?",
                self.settle_limit.as_secs(),
                kernel.initramfs.display()
            ),
        ))
    }

    async fn start(&self) -> Result<()> {
        if self.power_state().await? == State::On {
            return Ok(());
        }
        let standing = self.wrong(xml::standing(&self.definition().await?))?;
        self.switch("start", State::On).await?;
        if let Some(standing) = standing {
            self.define(&standing).await?;
            self.restore_running_order().await;
        }
        Ok(())
    }

    /// Changes the order of the running machine, for the guest's next restart. Where that cannot be done the machine still
    /// runs as asked, and who boots it from the network again is sent to its disk by the boot service.
    async fn restore_running_order(&self) {
        let aliases = match self.virsh.run(&["dumpxml", &self.name]).await {
            Ok(live) => xml::live_cards(&live).unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        for (index, alias) in aliases.iter().enumerate() {
            let command = serde_json::json!({"execute": "qom-set", "arguments": {
                "path": format!("/machine/peripheral/{alias}"), "property": "bootindex", "value": 100 + index}});
            if let Err(error) = self.virsh.run(&["qemu-monitor-command", &self.name, &command.to_string()]).await {
                tracing::warn!(machine = self.name, %error, "the order of the running machine stays network first");
            }
        }
    }

    async fn order(&self, device: BootDevice) -> Result<()> {
        let before = self.definition().await?;
        let standing = self.wrong(xml::standing(&before))?.unwrap_or_else(|| before.clone());
        let wanted = self.wrong(xml::first(&standing, device))?;
        self.define(&wanted).await?;
        let shown = self.definition().await?;
        if self.wrong(xml::first_device(&shown))? == Some(device) {
            return Ok(());
        }
        Err(Error::transient(
            &self.target(),
            format!("its definition was taken, but does not begin with the {device}; look at `virsh dumpxml`"),
        ))
    }

    fn wrong<T>(&self, result: std::result::Result<T, String>) -> Result<T> {
        result.map_err(|why| Error::refused(&self.target(), why))
    }

    fn gate(&self) -> std::sync::Arc<Gate> {
        Gate::of(&self.target())
    }
}

/// The words of `virsh domstate`. A paused machine has power; one that is shutting down is in between.
fn state_of(word: &str) -> State {
    match word {
        "running" | "idle" | "paused" => State::On,
        "shut off" | "crashed" => State::Off,
        _ => State::Unknown,
    }
}

impl PowerDriver for Domain {
    fn state(&self) -> BoxFuture<'_, Result<State>> {
        Box::pin(self.power_state())
    }

    fn on(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async { self.gate().done(self.start()).await })
    }

    fn off(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async { self.gate().done(self.switch("destroy", State::Off)).await })
    }

    fn cycle(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async { self.gate().done(self.restart()).await })
    }

    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async move { self.gate().done(self.order(device)).await })
    }

    fn next_boot(&self) -> BoxFuture<'_, Result<NextBoot>> {
        Box::pin(async {
            let xml = self.definition().await?;
            if self.wrong(xml::standing(&xml))?.is_none() {
                return Ok(NextBoot::Standing);
            }
            Ok(self.wrong(xml::first_device(&xml))?.map_or(NextBoot::Unknown, NextBoot::Once))
        })
    }

    fn hands_kernel(&self) -> bool {
        self.hands_kernel
    }

    fn start_kernel<'a>(&'a self, kernel: &'a Kernel) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(async move { self.gate().done(self.restart_with(kernel)).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_in_between_are_unknown() {
        assert_eq!(state_of("running"), State::On);
        assert_eq!(state_of("shut off"), State::Off);
        assert_eq!(state_of("in shutdown"), State::Unknown);
        assert_eq!(state_of("pmsuspended"), State::Unknown);
    }
}
