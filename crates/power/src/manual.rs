//! `manual:` asks a person. For machines whose power switch nobody can reach by wire.

use std::time::Duration;

use futures_util::future::{BoxFuture, ready};

use crate::{Address, BootDevice, Driver, Outcome, PowerDriver, Result, State};

pub(crate) const DRIVER: Driver = Driver {
    scheme: "manual",
    help: "asks a person; the text says where the machine stands",
    example: "manual:rack 3, unit 12",
    limit: Duration::from_secs(5),
    controller: |address| address.place().to_owned(),
    at_once: 1,
    network_boot: true,
    by_hand: true,
    parse,
};

struct Manual {
    machine: String,
}

fn parse(address: &mut Address) -> Result<Box<dyn PowerDriver>> {
    let place = address.place().trim();
    let machine = if place.is_empty() { "the machine".to_owned() } else { format!("the machine at {place}") };
    Ok(Box::new(Manual { machine }))
}

fn ask(sentence: String) -> BoxFuture<'static, Result<Outcome>> {
    Box::pin(ready(Ok(Outcome::AskOperator(sentence))))
}

impl PowerDriver for Manual {
    fn state(&self) -> BoxFuture<'_, Result<State>> {
        Box::pin(ready(Ok(State::Unknown)))
    }

    fn on(&self) -> BoxFuture<'_, Result<Outcome>> {
        ask(format!("Please switch {} on.", self.machine))
    }

    fn off(&self) -> BoxFuture<'_, Result<Outcome>> {
        ask(format!("Please switch {} off.", self.machine))
    }

    fn cycle(&self) -> BoxFuture<'_, Result<Outcome>> {
        ask(format!("Please switch {} off, wait a few seconds, and switch it on again.", self.machine))
    }

    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>> {
        ask(match device {
            BootDevice::Network => format!(
                "At the next start of {}, please choose network boot (PXE or UEFI HTTP) in the firmware's boot menu, for this start only.",
                self.machine
            ),
            BootDevice::Disk => format!("At the next start of {}, please let it boot from its own disk.", self.machine),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use crate::{BootDevice, Outcome, State, open};

    #[tokio::test]
    async fn every_operation_asks_a_person_and_says_where() {
        let driver = open("manual:rack 3, unit 12").unwrap();
        assert_eq!(driver.state().await.unwrap(), State::Unknown);
        for answer in [
            driver.on().await,
            driver.off().await,
            driver.cycle().await,
            driver.boot_next(BootDevice::Network).await,
            driver.boot_next(BootDevice::Disk).await,
        ] {
            let Outcome::AskOperator(sentence) = answer.unwrap() else { panic!("nobody can do this by wire") };
            assert!(sentence.contains("rack 3, unit 12"), "{sentence}");
        }
    }
}
