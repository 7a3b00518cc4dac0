//! Sets of machines: asked for what they have, which becomes events.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::operator::AcquireRequest;
use fleet::change::Snapshot;
use fleet::event::Event;
use fleet::ids::{Mac, NodeName, SetName};
use fleet::intake::Refused;
use fleet::set::{Comparison, Listed, MachineSet, compare};
use power::{Resource, Wish};
use tokio_util::sync::CancellationToken;

use crate::config::SetConfig;
use crate::error::Error;
use crate::keeper::Keeper;

/// Machines of one set at most; more is no set but a mistake.
const MACHINES: usize = 100_000;

/// Sets that are being asked.
#[derive(Debug, Clone, Default)]
pub struct Asking(Arc<Mutex<BTreeSet<SetName>>>);

/// Holds a set while it is being asked.
#[derive(Debug)]
pub struct Held {
    asking: Asking,
    name: SetName,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.asking.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

impl Asking {
    /// Holds the set, unless somebody else does: of two listings that are under way nobody knows which is the newer.
    fn hold(&self, name: &SetName) -> Result<Held, Error> {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone()) {
            return Ok(Held { asking: self.clone(), name: name.clone() });
        }
        Err(Refused::Conflict(format!("set `{name}` is being asked for its machines already; wait for that")).into())
    }

    /// Asks a set for its machines and takes them in; with `dry_run` it only says what would change.
    ///
    /// # Errors
    /// What the set answers, and why its listing is not taken in.
    pub async fn sync(&self, keeper: &Keeper, name: &SetName, dry_run: bool, force: bool) -> Result<Comparison, Error> {
        let _held = self.hold(name)?;
        let set = find(keeper, name)?;
        take_in(keeper, &set, dry_run, force).await
    }

    /// Takes machines of a set, or makes them there, and takes the set in.
    ///
    /// # Errors
    /// What the set answers, and why its listing is not taken in.
    pub async fn acquire(&self, keeper: &Keeper, name: &SetName, wish: AcquireRequest) -> Result<Comparison, Error> {
        let _held = self.hold(name)?;
        let set = find(keeper, name)?;
        let usual = Wish::default();
        let wish = Wish {
            token: wish.token,
            count: wish.count,
            image: wish.image,
            cpus: wish.cpus.unwrap_or(usual.cpus),
            memory_mib: wish.memory_mib.unwrap_or(usual.memory_mib),
            disk_gib: wish.disk_gib.unwrap_or(usual.disk_gib),
            instance_type: wish.instance_type,
            rack: wish.rack,
        };
        let taken = power::open_set(&set.address).map_err(set_error)?.acquire(&wish).await.map_err(set_error)?;
        tracing::info!(set = name.as_str(), token = wish.token, machines = taken.len(), "taken");
        take_in(keeper, &set, false, false).await
    }

    /// Gives machines back to their set, and takes the set in.
    ///
    /// # Errors
    /// [`Refused`] for a node that is not this set's or has something under way; what the set answers.
    pub async fn give_back(&self, keeper: &Keeper, name: &SetName, nodes: &[NodeName]) -> Result<Comparison, Error> {
        let _held = self.hold(name)?;
        let set = find(keeper, name)?;
        let ids = keeper.read(|state| {
            let id = |node| member_to_give_back(state.snapshot(), name, node);
            nodes.iter().map(id).collect::<Result<Vec<String>, Refused>>()
        })?;
        let owner = power::open_set(&set.address).map_err(set_error)?;
        for id in ids {
            owner.release(&id).await.map_err(set_error)?;
            tracing::info!(set = name.as_str(), id, "given back");
        }
        // These are gone because an operator said so, however large a part of the set they are.
        take_in(keeper, &set, false, true).await
    }

    /// Asks all sets for their machines again and again, until `stop`.
    pub async fn keep_up(self, keeper: Keeper, every: Duration, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            let names: Vec<SetName> = keeper.read(|state| state.snapshot().sets.keys().cloned().collect());
            for name in names {
                tokio::select! {
                    () = stop.cancelled() => return,
                    synced = self.sync(&keeper, &name, false, false) => {
                        if let Err(error) = synced {
                            tracing::warn!(set = name.as_str(), "its machines are not known anew: {error}");
                        }
                    }
                }
            }
        }
    }
}

fn find(keeper: &Keeper, name: &SetName) -> Result<MachineSet, Refused> {
    let set = keeper.read(|state| state.snapshot().sets.get(name).cloned());
    set.ok_or_else(|| Refused::NotFound { what: "set", name: name.to_string() })
}

/// What the set calls a node that may be given back.
fn member_to_give_back(snapshot: &Snapshot, set: &SetName, name: &NodeName) -> Result<String, Refused> {
    let node = snapshot.nodes.get(name).ok_or_else(|| Refused::NotFound { what: "node", name: name.to_string() })?;
    let member = node.member.as_ref().filter(|member| member.set == *set);
    let member = member.ok_or_else(|| Refused::Conflict(format!("node `{name}` is none of set `{set}`")))?;
    if node.stage.is_under_way() {
        return Err(Refused::Conflict(format!(
            "node `{name}` is {}; `rackswarm node release {name}` first",
            node.stage
        )));
    }
    Ok(member.id.clone())
}

/// Asks the set for its machines and takes them in; with `dry_run` it only says what would change.
async fn take_in(keeper: &Keeper, set: &MachineSet, dry_run: bool, force: bool) -> Result<Comparison, Error> {
    let name = &set.name;
    let listed = list(&set.address).await?;
    let now = keeper.now();
    let found = keeper.read(|state| compare(state.snapshot(), now, set, &listed, force))?;
    if !dry_run {
        keeper.tell(Event::SetListed { set: name.clone(), listed, force }).await?;
        tracing::info!(set = name.as_str(), "{}", found.summary());
    }
    Ok(found)
}

/// All machines of the set at this address, as the registry wants to know them.
///
/// # Errors
/// What the set answers.
pub async fn list(address: &str) -> Result<Vec<Listed>, Error> {
    let set = power::open_set(address).map_err(set_error)?;
    let resources = set.known().await.map_err(set_error)?;
    if resources.len() > MACHINES {
        return Err(Refused::Conflict(format!(
            "it lists {} machines, and {MACHINES} are the most that one set may have",
            resources.len()
        ))
        .into());
    }
    resources.into_iter().map(listed).collect()
}

/// Takes over what the configuration says: its sets are there, and those that it no longer names are gone, whose nodes
/// stay.
///
/// # Errors
/// When two sets have one address, or the state cannot be stored.
pub async fn settle(keeper: &Keeper, configured: &[SetConfig]) -> Result<(), Error> {
    let before: Vec<MachineSet> = keeper.read(|state| state.snapshot().sets.values().cloned().collect());
    for set in before.into_iter().filter(|set| set.configured) {
        if configured.iter().all(|config| config.name != set.name) {
            tracing::info!(set = set.name.as_str(), "it has gone from the configuration; its nodes stay");
            keeper.tell(Event::RemoveSet { set: set.name, configured: true }).await?;
        }
    }
    for config in configured {
        let address = config.whole_address().map_err(|why| Error::Setup(format!("set `{}`: {why}", config.name)))?;
        let set = MachineSet {
            name: config.name.clone(),
            address,
            rack: config.rack.clone(),
            configured: true,
            synced: None,
        };
        keeper
            .tell(Event::PutSet(set))
            .await
            .map_err(|error| Error::Setup(format!("set `{}`: {error}", config.name)))?;
    }
    Ok(())
}

fn listed(resource: Resource) -> Result<Listed, Error> {
    // What a set tells that is no address of a card or no UUID is as good as nothing told.
    let macs = resource.macs.iter().filter_map(|text| text.parse::<Mac>().ok()).collect();
    let uuid = resource.uuid.as_deref().and_then(|text| text.parse().ok());
    power::open(&resource.power).map_err(set_error)?;
    Ok(Listed {
        id: resource.id,
        name: resource.name,
        macs,
        uuid: uuid.filter(|uuid: &uuid::Uuid| !uuid.is_nil() && !uuid.is_max()),
        rack: resource.rack,
        power: resource.power,
    })
}

/// What a set said, for an operator: what may pass is worth asking again, the rest wants a correction.
fn set_error(error: power::Error) -> Error {
    match error.advice() {
        power::Advice::Retry => Error::Set(error.to_string()),
        power::Advice::Refuse => Refused::Conflict(error.to_string()).into(),
    }
}
