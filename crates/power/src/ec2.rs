//! `ec2+http://HOST[:PORT]/i-0123?region=R&credentials_file=/path` is an instance of a cloud that speaks the EC2 query API.
//!
//! The endpoint is said in the address, so that any compatible cloud serves. There is no TLS in this version: a cloud on
//! the internet needs a TLS proxy beside this server, and the address says `ec2+http:` so that it is written down.
//! An instance boots from its image, never from the network, so a deployment to it goes through an image
//! ([`crate::ResourceSet::add_image`]) instead of PXE.

mod answers;
mod call;
mod set;
mod sign;

use std::time::Duration;

use futures_util::future::BoxFuture;

use self::answers::Instance;
use self::call::Cloud;
use crate::{Address, BootDevice, Driver, Error, NextBoot, Outcome, PowerDriver, Result, State, settle};

pub(crate) use set::SET;

pub(crate) const DRIVER: Driver = Driver {
    scheme: "ec2",
    help: "an instance of a cloud that speaks the EC2 query API, over plain HTTP as yet: region=NAME and \
           credentials_file=/path (needed) attempts=1..10 call_seconds=1..120 settle_seconds=1..600",
    example: "ec2+http://cloud.example:8773/i-0123456789abcdef0?region=lab&credentials_file=/etc/rackswarm/cloud",
    limit: Duration::from_secs(600),
    controller: |address| address.controller(call::PORT),
    at_once: 16,
    network_boot: false,
    by_hand: false,
    parse,
};

const POLL: Duration = Duration::from_secs(1);

struct Machine {
    cloud: Cloud,
    id: String,
}

fn parse(address: &mut Address) -> Result<Box<dyn PowerDriver>> {
    let (cloud, path) = Cloud::take(address)?;
    let id = path.trim_matches('/').to_owned();
    if !instance_id(&id) {
        return Err(address.wrong(format!("`{id}` is not the id of an instance, such as i-0123456789abcdef0")));
    }
    Ok(Box::new(Machine { cloud, id }))
}

/// `i-` and hexadecimal digits.
fn instance_id(id: &str) -> bool {
    id.strip_prefix("i-")
        .is_some_and(|rest| (1..=32).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl Machine {
    async fn look(&self) -> Result<Instance> {
        let found = self.cloud.instances(&[("InstanceId.1".into(), self.id.clone())]).await?;
        found.into_iter().find(|instance| instance.id == self.id).ok_or_else(|| {
            Error::refused(&self.cloud.target(), format!("it has no instance {}; it may have been terminated", self.id))
        })
    }

    /// The power of an instance that can still be switched.
    async fn power_state(&self) -> Result<State> {
        let instance = self.look().await?;
        if instance.is_ended() {
            return Err(Error::refused(
                &self.cloud.target(),
                format!("the instance {} is {}, which is for ever; acquire another one", self.id, instance.state),
            ));
        }
        Ok(instance.power())
    }

    async fn switch(&self, action: &str, more: &[(&str, &str)], wanted: State) -> Result<()> {
        let mut parameters = vec![("InstanceId.1".to_owned(), self.id.clone())];
        parameters.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let (command, limit) = (self.cloud.ask(action, &parameters), self.cloud.settle_limit);
        if settle::switch(wanted, command, || self.power_state(), limit, POLL).await? {
            return Ok(());
        }
        Err(Error::transient(
            &self.cloud.target(),
            format!(
                "it accepted {action} for {}, but {} s later the instance is not {wanted}; look at the cloud's console, or raise `settle_seconds=`",
                self.id,
                limit.as_secs()
            ),
        ))
    }
}

impl PowerDriver for Machine {
    fn state(&self) -> BoxFuture<'_, Result<State>> {
        Box::pin(async { Ok(self.look().await?.power()) })
    }

    fn on(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async {
            self.switch("StartInstances", &[], State::On).await?;
            Ok(Outcome::Done)
        })
    }

    fn off(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async {
            self.switch("StopInstances", &[("Force", "true")], State::Off).await?;
            Ok(Outcome::Done)
        })
    }

    fn cycle(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async {
            self.switch("StopInstances", &[("Force", "true")], State::Off).await?;
            self.switch("StartInstances", &[], State::On).await?;
            Ok(Outcome::Done)
        })
    }

    fn reset(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async {
            if self.power_state().await? == State::On {
                self.cloud.ask("RebootInstances", &[("InstanceId.1".to_owned(), self.id.clone())]).await?;
            }
            self.switch("StartInstances", &[], State::On).await?;
            Ok(Outcome::Done)
        })
    }

    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async move {
            match device {
                BootDevice::Disk => {
                    self.look().await?;
                    Ok(Outcome::Done)
                }
                BootDevice::Network => Err(Error::refused(
                    &self.cloud.target(),
                    format!(
                        "the instance {} cannot boot from the network; add the image to the cloud and acquire instances that start from it",
                        self.id
                    ),
                )),
            }
        })
    }

    fn next_boot(&self) -> BoxFuture<'_, Result<NextBoot>> {
        Box::pin(async {
            self.look().await?;
            Ok(NextBoot::Always(BootDevice::Disk))
        })
    }
}
