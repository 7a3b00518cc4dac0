//! `fake:NAME` as a set: machines in this process's memory, made when they are wished for.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, ready};

use super::{Image, Kind, Resource, ResourceSet, Set, Source, Wish};
use crate::{Error, Outcome, PowerDriver, Result, State, fake};

pub(crate) const SET: Set = Set {
    scheme: "fake",
    help: "machines in memory, made when they are wished for: room=1..100000 (how many there can be) rules=RULE:VALUE,... (of their `fake:` drivers)",
    example: "fake:cloud?room=230&rules=latency_ms:20,loss:1",
    limit: Duration::from_secs(30),
    parse: |address| {
        let name = address.place().to_owned();
        if name.is_empty() {
            return Err(address.wrong("a fake set needs a name"));
        }
        let rules = address.take("rules").unwrap_or_default();
        let query =
            if rules.is_empty() { String::new() } else { format!("?{}", rules.replace(',', "&").replace(':', "=")) };
        crate::open(&format!("fake:x{query}"))?;
        Ok(Box::new(FakeSet { name, room: address.number("room", 1..=100_000)?.unwrap_or(1_000), query }))
    },
};

/// Machines in memory.
pub(crate) struct FakeSet {
    name: String,
    room: usize,
    query: String,
}

#[derive(Default)]
struct Shelf {
    machines: BTreeMap<String, String>,
    images: BTreeMap<String, Image>,
    made: u64,
}

fn shelves() -> MutexGuard<'static, BTreeMap<String, Shelf>> {
    static SHELVES: OnceLock<Mutex<BTreeMap<String, Shelf>>> = OnceLock::new();
    SHELVES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeSet {
    fn resource(&self, id: &str, token: &str) -> Resource {
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
            held_by: Some(token.to_owned()),
            about: "in memory".to_owned(),
            ..Resource::default()
        }
    }

    fn take(&self, wish: &Wish) -> Result<Vec<Resource>> {
        let mut shelves = shelves();
        let shelf = shelves.entry(self.name.clone()).or_default();
        if let Some(image) = &wish.image
            && !shelf.images.contains_key(image)
        {
            return Err(Error::refused(&format!("fake set {}", self.name), format!("it has no image `{image}`")));
        }
        let held = shelf.machines.values().filter(|token| **token == wish.token).count();
        let missing = (wish.count as usize).saturating_sub(held);
        if shelf.machines.len() + missing > self.room {
            return Err(Error::refused(
                &format!("fake set {}", self.name),
                format!(
                    "it has room for {} machines, {} are there and {missing} more are wished for; give some back",
                    self.room,
                    shelf.machines.len()
                ),
            ));
        }
        for _ in 0..missing {
            shelf.made += 1;
            let id = format!("{}-{}", self.name, shelf.made);
            shelf.machines.insert(id, wish.token.clone());
        }
        let mine = shelf.machines.iter().filter(|(_, token)| **token == wish.token);
        Ok(mine.map(|(id, token)| self.resource(id, token)).collect())
    }
}

impl ResourceSet for FakeSet {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Resource>>> {
        let all = shelves()
            .get(&self.name)
            .map(|shelf| shelf.machines.iter().map(|(id, token)| self.resource(id, token)).collect());
        Box::pin(ready(Ok(all.unwrap_or_default())))
    }

    fn acquire<'a>(&'a self, wish: &'a Wish) -> BoxFuture<'a, Result<Vec<Resource>>> {
        Box::pin(ready(self.take(wish)))
    }

    fn release<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Outcome>> {
        if let Some(shelf) = shelves().get_mut(&self.name)
            && shelf.machines.remove(id).is_some()
        {
            fake::forget(id);
        }
        Box::pin(ready(Ok(Outcome::Done)))
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<Image>>> {
        let all = shelves().get(&self.name).map(|shelf| shelf.images.values().cloned().collect());
        Box::pin(ready(Ok(all.unwrap_or_default())))
    }

    fn add_image<'a>(&'a self, name: &'a str, _source: &'a Source) -> BoxFuture<'a, Result<Image>> {
        let image = Image { id: name.to_owned(), name: name.to_owned(), ready: true };
        shelves().entry(self.name.clone()).or_default().images.insert(name.to_owned(), image.clone());
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
