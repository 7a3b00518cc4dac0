//! A cloud as a resource set. What we made carries a tag with the wish's token; nothing else is ever terminated.

use std::time::Duration;

use data_encoding::HEXLOWER;
use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};

use super::answers::{self, Instance, TOKEN_TAG};
use super::call::Cloud;
use super::{POLL, instance_id};
use crate::set::{Image, Kind, Resource, ResourceSet, Set, Source, Wish};
use crate::{Address, Error, Outcome, PowerDriver, Result, State, settle};

pub(crate) const SET: Set = Set {
    scheme: "ec2",
    help: "instances of a cloud that speaks the EC2 query API, over plain HTTP as yet: region=NAME and credentials_file=/path \
           (needed) subnet=ID attempts=1..10 call_seconds=1..120 settle_seconds=1..600",
    example: "ec2+http://cloud.example:8773?region=lab&credentials_file=/etc/rackswarm/cloud",
    limit: Duration::from_secs(900),
    credentials: Some("credentials_file"),
    parse: |address| Ok(Box::new(Instances::parse(address)?)),
};

struct Instances {
    cloud: Cloud,
    subnet: Option<String>,
}

impl Instances {
    fn parse(address: &mut Address) -> Result<Instances> {
        let (cloud, path) = Cloud::take(address)?;
        if !path.trim_matches('/').is_empty() {
            return Err(address.wrong("a set is the whole cloud; leave the instance's id away"));
        }
        Ok(Instances { cloud, subnet: address.take("subnet") })
    }

    fn resource(&self, instance: Instance) -> Resource {
        Resource {
            kind: Kind::Virtual,
            state: instance.power(),
            power: self.cloud.address_of(&instance.id),
            name: instance.name,
            id: instance.id,
            macs: instance.macs,
            addresses: instance.addresses,
            held_by: instance.token,
            about: instance.kind,
            ..Resource::default()
        }
    }

    /// All instances of a token, those that have ended included: the cloud shows them for an hour.
    async fn of_token(&self, token: &str) -> Result<Vec<Instance>> {
        let select = [
            ("Filter.1.Name".to_owned(), format!("tag:{TOKEN_TAG}")),
            ("Filter.1.Value.1".to_owned(), token.to_owned()),
        ];
        let mut all = self.cloud.instances(&select).await?;
        // Not every compatible cloud keeps to the filter.
        all.retain(|instance| instance.token.as_deref() == Some(token));
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    async fn take(&self, wish: &Wish) -> Result<Vec<Resource>> {
        let Some(image) = &wish.image else {
            return Err(Error::refused(
                &self.cloud.target(),
                "an instance cannot boot from the network, so the wish needs an image; `images` lists them",
            ));
        };
        let known = self.of_token(&wish.token).await?;
        let mut mine: Vec<Instance> = known.iter().filter(|instance| !instance.is_ended()).cloned().collect();
        let missing = (wish.count as usize).saturating_sub(mine.len());
        if missing > 0 {
            let xml = self.cloud.ask("RunInstances", &self.run(wish, image, missing, &known)).await?;
            let (made, _) = self.cloud.read(answers::instances(&xml))?;
            if made.len() < missing {
                return Err(Error::transient(
                    &self.cloud.target(),
                    format!("it made {} of {missing} instances; ask again with the same token", made.len()),
                ));
            }
            mine.extend(made);
        }
        Ok(mine.into_iter().map(|instance| self.resource(instance)).collect())
    }

    fn run(&self, wish: &Wish, image: &str, missing: usize, known: &[Instance]) -> Vec<(String, String)> {
        let count = missing.to_string();
        let mut parameters = vec![
            ("ImageId", image.to_owned()),
            ("MinCount", count.clone()),
            ("MaxCount", count),
            ("ClientToken", client_token(wish, image, known)),
            ("TagSpecification.1.ResourceType", "instance".to_owned()),
            ("TagSpecification.1.Tag.1.Key", TOKEN_TAG.to_owned()),
            ("TagSpecification.1.Tag.1.Value", wish.token.clone()),
            ("TagSpecification.1.Tag.2.Key", "Name".to_owned()),
            ("TagSpecification.1.Tag.2.Value", format!("rackswarm-{}", wish.token)),
        ];
        if let Some(kind) = &wish.instance_type {
            parameters.push(("InstanceType", kind.clone()));
        }
        if let Some(subnet) = &self.subnet {
            parameters.push(("SubnetId", subnet.clone()));
        }
        parameters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    async fn give_back(&self, id: &str) -> Result<Outcome> {
        let Some(instance) = self.look(id).await? else { return Ok(Outcome::Done) };
        if instance.is_ended() {
            return Ok(Outcome::Done);
        }
        if instance.token.is_none() {
            return Err(Error::refused(
                &self.cloud.target(),
                format!("the instance {id} has no tag {TOKEN_TAG}, so it is not ours and not terminated"),
            ));
        }
        self.cloud.ask("TerminateInstances", &[("InstanceId.1".into(), id.to_owned())]).await?;
        let asked = || async { Ok(self.look(id).await?.is_none_or(|instance| instance.is_ended()).then_some(())) };
        match settle::until(self.cloud.settle_limit, POLL, asked).await? {
            Some(()) => Ok(Outcome::Done),
            None => Err(Error::transient(
                &self.cloud.target(),
                format!(
                    "it accepted TerminateInstances for {id}, but the instance goes on; look at the cloud's console"
                ),
            )),
        }
    }

    async fn look(&self, id: &str) -> Result<Option<Instance>> {
        let select =
            [("Filter.1.Name".to_owned(), "instance-id".to_owned()), ("Filter.1.Value.1".to_owned(), id.to_owned())];
        Ok(self.cloud.instances(&select).await?.into_iter().find(|instance| instance.id == id))
    }

    async fn shelf(&self) -> Result<Vec<Image>> {
        let xml = self.cloud.ask("DescribeImages", &[("Owner.1".into(), "self".into())]).await?;
        self.cloud.read(answers::images(&xml))
    }

    async fn shelve(&self, name: &str, source: &Source) -> Result<Image> {
        if let Some(image) = self.shelf().await?.into_iter().find(|image| image.name == name) {
            return Ok(image);
        }
        let xml = match source {
            Source::Machine(id) => {
                match self.look(id).await? {
                    Some(instance) if instance.power() == State::Off && !instance.is_ended() => {}
                    Some(instance) => {
                        return Err(Error::refused(
                            &self.cloud.target(),
                            format!(
                                "the instance {id} is {}; stop it first, for a disk that changes is no image",
                                instance.state
                            ),
                        ));
                    }
                    None => return Err(Error::refused(&self.cloud.target(), format!("it has no instance {id}"))),
                }
                let parameters = [("InstanceId".to_owned(), id.clone()), ("Name".to_owned(), name.to_owned())];
                self.cloud.ask("CreateImage", &parameters).await?
            }
            Source::Place(snapshot) if snapshot.starts_with("snap-") => {
                let parameters = [
                    ("Name", name),
                    ("Architecture", "x86_64"),
                    ("VirtualizationType", "hvm"),
                    ("RootDeviceName", "/dev/sda1"),
                    ("BlockDeviceMapping.1.DeviceName", "/dev/sda1"),
                    ("BlockDeviceMapping.1.Ebs.SnapshotId", snapshot),
                ];
                let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned()));
                self.cloud.ask("RegisterImage", &parameters).await?
            }
            Source::Place(place) => {
                return Err(Error::refused(
                    &self.cloud.target(),
                    format!("`{place}` is no snapshot; import the disk first and give its snap-... id"),
                ));
            }
        };
        let id = self.cloud.read(answers::anywhere(&xml, "imageId"))?.unwrap_or_default();
        // What it says to have made is read back, whether ready or not.
        self.shelf().await?.into_iter().find(|image| image.id == id).ok_or_else(|| {
            Error::transient(&self.cloud.target(), format!("it made the image `{id}`, but does not list it; ask again"))
        })
    }
}

/// The same for the same wish while the same instances are known, so that an answer that was lost makes nothing twice; and
/// another one when instances of the wish have ended and are to be replaced. At most 64 characters.
fn client_token(wish: &Wish, image: &str, known: &[Instance]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{} {} {image} {:?}", wish.token, wish.count, wish.instance_type));
    for instance in known {
        hash.update(format!(" {} {}", instance.id, instance.is_ended()));
    }
    HEXLOWER.encode(&hash.finalize())
}

impl ResourceSet for Instances {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Resource>>> {
        Box::pin(async {
            let all = self.cloud.instances(&[]).await?;
            let there = all.into_iter().filter(|instance| !instance.is_ended());
            Ok(there.map(|instance| self.resource(instance)).collect())
        })
    }

    fn acquire<'a>(&'a self, wish: &'a Wish) -> BoxFuture<'a, Result<Vec<Resource>>> {
        Box::pin(self.take(wish))
    }

    fn release<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(self.give_back(id))
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<Image>>> {
        Box::pin(self.shelf())
    }

    fn add_image<'a>(&'a self, name: &'a str, source: &'a Source) -> BoxFuture<'a, Result<Image>> {
        Box::pin(self.shelve(name, source))
    }

    fn power(&self, id: &str) -> Result<Box<dyn PowerDriver>> {
        if !instance_id(id) {
            return Err(Error::refused(&self.cloud.target(), format!("`{id}` is not the id of an instance")));
        }
        crate::open(&self.cloud.address_of(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_answer_makes_nothing_twice_and_an_ended_instance_is_replaced() {
        let wish = Wish { token: "web".into(), count: 2, ..Wish::default() };
        let one = Instance { id: "i-1".into(), state: "running".into(), ..Instance::default() };
        let ended = Instance { state: "terminated".into(), ..one.clone() };
        let token = |known: &[Instance]| client_token(&wish, "ami-1", known);
        assert_eq!(token(std::slice::from_ref(&one)), token(std::slice::from_ref(&one)));
        assert_ne!(token(&[one]), token(std::slice::from_ref(&ended)));
        assert_ne!(token(&[]), token(&[ended]));
        assert_eq!(token(&[]).len(), 64);
    }
}
