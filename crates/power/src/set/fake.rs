//! `fake:NAME` as a set: machines in this process's memory, made when they are wished for.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, ready};
use sha2::{Digest, Sha256};

use super::{Image, Kind, Resource, ResourceSet, Set, Source, Wish};
use crate::{Error, Outcome, PowerDriver, Result, State, fake};

pub(crate) const SET: Set = Set {
    scheme: "fake",
    help: "machines in memory, made when they are wished for: machines=0..100000 (there from the start) room=1..100000 (how many there can be) rack=NAME rules=RULE:VALUE,... (of their `fake:` drivers)",
    example: "fake:cloud?machines=23&rules=latency_ms:20,loss:1",
    limit: Duration::from_secs(30),
    credentials: None,
    parse: |address| {
        let name = address.place().to_owned();
        if name.is_empty() {
            return Err(address.wrong("a fake set needs a name"));
        }
        let rules = address.take("rules").unwrap_or_default();
        let query =
            if rules.is_empty() { String::new() } else { format!("?{}", rules.replace(',', "&").replace(':', "=")) };
        crate::open(&format!("fake:x{query}"))?;
        let machines = address.number("machines", 0..=100_000)?.unwrap_or(0);
        let room = address.number("room", 1..=100_000)?.unwrap_or(1_000).max(machines);
        Ok(Box::new(FakeSet { name, machines, room, rack: address.take("rack"), query }))
    },
};

/// Machines in memory.
pub(crate) struct FakeSet {
    name: String,
    machines: usize,
    room: usize,
    rack: Option<String>,
    query: String,
}

#[derive(Default)]
struct Shelf {
    /// Who holds each.
    machines: BTreeMap<String, Option<String>>,
    images: BTreeMap<String, Image>,
    made: u64,
}

fn shelves() -> MutexGuard<'static, BTreeMap<String, Shelf>> {
    static SHELVES: OnceLock<Mutex<BTreeMap<String, Shelf>>> = OnceLock::new();
    SHELVES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shelf {
    fn make(&mut self, name: &str, token: Option<String>) {
        self.made += 1;
        self.machines.insert(format!("{name}-{}", self.made), token);
    }
}

impl FakeSet {
    /// What is there; at the first look, the machines that are there from the start.
    fn shelf<T>(&self, look: impl FnOnce(&mut Shelf) -> T) -> T {
        let mut shelves = shelves();
        let shelf = shelves.entry(self.name.clone()).or_insert_with(|| {
            let mut shelf = Shelf::default();
            (0..self.machines).for_each(|_| shelf.make(&self.name, None));
            shelf
        });
        look(shelf)
    }

    fn resource(&self, id: &str, token: Option<&String>) -> Resource {
        let (mac, uuid) = identity(id);
        let state = match fake::machine(id) {
            Some(machine) if machine.on => State::On,
            _ => State::Off,
        };
        Resource {
            id: id.to_owned(),
            name: id.to_owned(),
            kind: Kind::Virtual,
            state,
            power: format!("fake:{id}{}", self.query),
            macs: vec![mac],
            uuid: Some(uuid),
            rack: self.rack.clone(),
            held_by: token.cloned(),
            about: "in memory".to_owned(),
            ..Resource::default()
        }
    }

    fn take(&self, shelf: &mut Shelf, wish: &Wish) -> Result<Vec<Resource>> {
        let refused = |why: String| Err(Error::refused(&format!("fake set {}", self.name), why));
        if let Some(image) = &wish.image
            && !shelf.images.contains_key(image)
        {
            return refused(format!("it has no image `{image}`"));
        }
        let count = |held: &dyn Fn(&Option<String>) -> bool| shelf.machines.values().filter(|one| held(one)).count();
        let mine = count(&|token| token.as_ref() == Some(&wish.token));
        let free = count(&Option::is_none);
        let missing = (wish.count as usize).saturating_sub(mine);
        let new = missing.saturating_sub(free);
        if shelf.machines.len() + new > self.room {
            return refused(format!(
                "it has room for {} machines, {} are there and {missing} more are wished for; give some back",
                self.room,
                shelf.machines.len()
            ));
        }
        for token in shelf.machines.values_mut().filter(|token| token.is_none()).take(missing) {
            *token = Some(wish.token.clone());
        }
        (0..new).for_each(|_| shelf.make(&self.name, Some(wish.token.clone())));
        let mine = shelf.machines.iter().filter(|(_, token)| token.as_ref() == Some(&wish.token));
        Ok(mine.map(|(id, token)| self.resource(id, token.as_ref())).collect())
    }
}

/// A MAC address and a UUID that follow from the name, so that they are the same in every run.
pub(crate) fn identity(name: &str) -> (String, String) {
    let hash = Sha256::digest(name.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    // 02 is an address that no maker has given (IEEE 802, locally administered).
    let mac = format!("02:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", hash[16], hash[17], hash[18], hash[19], hash[20]);
    (mac, uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
}

impl ResourceSet for FakeSet {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Resource>>> {
        let all = self.shelf(|shelf| {
            shelf.machines.iter().map(|(id, token)| self.resource(id, token.as_ref())).collect::<Vec<_>>()
        });
        Box::pin(ready(Ok(all)))
    }

    fn acquire<'a>(&'a self, wish: &'a Wish) -> BoxFuture<'a, Result<Vec<Resource>>> {
        Box::pin(ready(self.shelf(|shelf| self.take(shelf, wish))))
    }

    fn release<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Outcome>> {
        if self.shelf(|shelf| shelf.machines.remove(id)).is_some() {
            fake::forget(id);
        }
        Box::pin(ready(Ok(Outcome::Done)))
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<Image>>> {
        let all = self.shelf(|shelf| shelf.images.values().cloned().collect::<Vec<_>>());
        Box::pin(ready(Ok(all)))
    }

    fn add_image<'a>(&'a self, name: &'a str, _source: &'a Source) -> BoxFuture<'a, Result<Image>> {
        let image = Image { id: name.to_owned(), name: name.to_owned(), ready: true };
        self.shelf(|shelf| shelf.images.insert(name.to_owned(), image.clone()));
        Box::pin(ready(Ok(image)))
    }

    fn power(&self, id: &str) -> Result<Box<dyn PowerDriver>> {
        crate::open(&format!("fake:{id}{}", self.query))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::open_set;

    #[tokio::test]
    async fn machines_may_be_there_from_the_start_and_are_taken_first() {
        let set = open_set("fake:stock?machines=2&rack=r7").unwrap();
        let listed = set.list().await.unwrap();
        assert_eq!((listed.len(), listed[0].held_by.clone(), listed[0].rack.as_deref()), (2, None, Some("r7")));
        assert!(listed[0].macs != listed[1].macs && listed[0].uuid != listed[1].uuid);
        let wish = Wish { token: "a".into(), count: 3, ..Wish::default() };
        assert_eq!(set.acquire(&wish).await.unwrap().len(), 3);
        assert_eq!(set.list().await.unwrap().len(), 3);
        set.release(&listed[0].id).await.unwrap();
        assert_eq!(open_set("fake:stock?machines=2").unwrap().list().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_token_holds_what_it_took_and_room_is_kept() {
        let set = open_set("fake:shelf?room=5&rules=fail:1").unwrap();
        let wish = Wish { token: "a".into(), count: 3, ..Wish::default() };
        let first = set.acquire(&wish).await.unwrap();
        assert_eq!(set.acquire(&wish).await.unwrap(), first);
        let error = set.acquire(&Wish { token: "b".into(), count: 3, ..Wish::default() }).await.unwrap_err();
        assert!(error.to_string().contains("room for 5"), "{error}");
        let machine = crate::open(&first[0].power).unwrap();
        machine.on().await.unwrap_err();
        machine.on().await.unwrap();
        assert_eq!(set.list().await.unwrap()[0].state, State::On);
        set.release(&first[0].id).await.unwrap();
        set.release(&first[0].id).await.unwrap();
        assert_eq!(set.list().await.unwrap().len(), 2);
        assert_eq!(set.acquire(&wish).await.unwrap().len(), 3);
    }
}
