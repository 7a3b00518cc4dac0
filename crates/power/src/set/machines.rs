//! `machines:/path/to/machines.toml` is a set of physical machines that people have written down, each with its power
//! address. Who holds which is kept in a second file beside it, so that a restart forgets nothing:
//!
//! ```toml
//! [[machine]]
//! name = "r1n07"
//! power = "redfish+http://admin@10.9.1.7?password_file=/etc/rackswarm/bmc-password"
//! mac = ["52:54:00:00:01:07"]
//! rack = "r1"
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, ready};
use rustix::fs::FlockOperation;
use serde::Deserialize;
use tokio::time::sleep;

use super::{Image, Kind, Resource, ResourceSet, Set, Source, Wish, no_images};
use crate::{Error, Outcome, PowerDriver, Result, State};

pub(crate) const SET: Set = Set {
    scheme: "machines",
    help: "physical machines written down in a TOML file, [[machine]] with name, power, mac, rack, uuid, about: holds=/path (who holds which; default is the file's name with .holds)",
    example: "machines:/etc/rackswarm/machines.toml",
    limit: Duration::from_secs(600),
    credentials: None,
    parse: |address| {
        let file = PathBuf::from(address.place());
        if !file.is_absolute() {
            return Err(address.wrong("the file needs an absolute path"));
        }
        let holds = address.file("holds")?.unwrap_or_else(|| with_suffix(&file, ".holds"));
        Ok(Box::new(Machines { file, holds }))
    },
};

/// Ten thousand machines have about 2 MiB.
const FILE_BYTES: u64 = 32 * 1024 * 1024;
/// Machines asked for their state at the same time.
const AT_ONCE: usize = 32;
const POLL: Duration = Duration::from_millis(20);

struct Machines {
    file: PathBuf,
    holds: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    #[serde(default)]
    machine: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    power: String,
    #[serde(default)]
    mac: Vec<String>,
    rack: Option<String>,
    uuid: Option<String>,
    #[serde(default)]
    about: String,
}

/// Machine by machine, the token that holds it.
type Holds = BTreeMap<String, String>;

impl Machines {
    fn target(&self) -> String {
        format!("set {}", self.file.display())
    }

    fn trouble(&self, path: &Path, why: impl std::fmt::Display) -> Error {
        Error::refused(&self.target(), format!("{}: {why}", path.display()))
    }

    fn book(&self) -> Result<Vec<Entry>> {
        let text = read(&self.file).map_err(|why| self.trouble(&self.file, why))?;
        let book: Book = toml::from_str(&text).map_err(|why| self.trouble(&self.file, why))?;
        let mut names = BTreeSet::new();
        for entry in &book.machine {
            if !names.insert(entry.name.as_str()) {
                return Err(self.trouble(&self.file, format!("the machine `{}` stands there twice", entry.name)));
            }
            crate::open(&entry.power)
                .map_err(|why| self.trouble(&self.file, format!("machine `{}`: {why}", entry.name)))?;
        }
        Ok(book.machine)
    }

    fn held(&self) -> Result<Holds> {
        match read(&self.holds) {
            Ok(text) => toml::from_str(&text).map_err(|why| self.trouble(&self.holds, why)),
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(Holds::new()),
            Err(why) => Err(self.trouble(&self.holds, why)),
        }
    }

    /// Changes who holds what under a lock, and replaces the file as a whole, so that a crash leaves the old or the new.
    async fn change<T>(&self, edit: impl FnOnce(&mut Holds) -> Result<T>) -> Result<T> {
        let lock_path = with_suffix(&self.holds, ".lock");
        let lock = File::create(&lock_path).map_err(|why| self.trouble(&lock_path, why))?;
        while let Err(error) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(self.trouble(&lock_path, error));
            }
            sleep(POLL).await;
        }
        let before = self.held()?;
        let mut after = before.clone();
        let result = edit(&mut after)?;
        if after != before {
            let text = toml::to_string(&after).map_err(|why| self.trouble(&self.holds, why))?;
            replace(&self.holds, &text).map_err(|why| self.trouble(&self.holds, why))?;
        }
        Ok(result)
    }

    async fn take(&self, wish: &Wish) -> Result<Vec<Resource>> {
        if wish.image.is_some() {
            return no_images(&self.target()).await;
        }
        let book = self.book()?;
        let fits = |entry: &&Entry| wish.rack.is_none() || entry.rack == wish.rack;
        let holds = self
            .change(|holds| {
                holds.retain(|name, _| book.iter().any(|entry| entry.name == *name));
                let mine = holds.values().filter(|token| **token == wish.token).count();
                let missing = (wish.count as usize).saturating_sub(mine);
                let free: Vec<&Entry> =
                    book.iter().filter(fits).filter(|entry| !holds.contains_key(&entry.name)).take(missing).collect();
                if free.len() < missing {
                    return Err(Error::refused(
                        &self.target(),
                        format!("{missing} more machines are wished for and {} are free{}; give some back or write more down", free.len(), wish.rack.as_ref().map(|rack| format!(" in rack {rack}")).unwrap_or_default()),
                    ));
                }
                for entry in free {
                    holds.insert(entry.name.clone(), wish.token.clone());
                }
                Ok(holds.clone())
            })
            .await?;
        let mine = book.into_iter().filter(|entry| holds.get(&entry.name) == Some(&wish.token));
        Ok(asked(mine, &holds).await)
    }
}

/// The entries as resources, with their power as their controllers tell it. One that does not answer is unknown: a list is
/// no place to fail because of one machine.
async fn asked(entries: impl Iterator<Item = Entry>, holds: &Holds) -> Vec<Resource> {
    let all = entries.map(|entry| async move {
        let state = match crate::open(&entry.power) {
            Ok(driver) => driver.state().await.unwrap_or(State::Unknown),
            Err(_) => State::Unknown,
        };
        Resource { state, ..unasked(entry, holds) }
    });
    futures_util::stream::iter(all).buffered(AT_ONCE).collect().await
}

/// An entry as a resource whose power nobody has asked for.
fn unasked(entry: Entry, holds: &Holds) -> Resource {
    Resource {
        held_by: holds.get(&entry.name).cloned(),
        id: entry.name.clone(),
        name: entry.name,
        kind: Kind::Physical,
        state: State::Unknown,
        power: entry.power,
        macs: entry.mac.iter().map(|mac| mac.to_lowercase()).collect(),
        uuid: entry.uuid,
        rack: entry.rack,
        about: entry.about,
        ..Resource::default()
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let got = File::open(path)?.take(FILE_BYTES + 1).read_to_string(&mut text)?;
    if got as u64 > FILE_BYTES {
        return Err(std::io::Error::other("it is larger than 32 MiB, so it is another file"));
    }
    Ok(text)
}

fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let beside = with_suffix(path, ".new");
    let mut file = File::create(&beside)?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

impl ResourceSet for Machines {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Resource>>> {
        Box::pin(async {
            let holds = self.held()?;
            Ok(asked(self.book()?.into_iter(), &holds).await)
        })
    }

    fn known(&self) -> BoxFuture<'_, Result<Vec<Resource>>> {
        let all = self
            .held()
            .and_then(|holds| Ok(self.book()?.into_iter().map(|entry| unasked(entry, &holds)).collect::<Vec<_>>()));
        Box::pin(ready(all))
    }

    fn acquire<'a>(&'a self, wish: &'a Wish) -> BoxFuture<'a, Result<Vec<Resource>>> {
        Box::pin(self.take(wish))
    }

    /// Gives it back and leaves its power as it is.
    fn release<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(async {
            self.change(|holds| {
                holds.remove(id);
                Ok(Outcome::Done)
            })
            .await
        })
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<Image>>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    fn add_image<'a>(&'a self, _name: &'a str, _source: &'a Source) -> BoxFuture<'a, Result<Image>> {
        no_images(&self.target())
    }

    fn power(&self, id: &str) -> Result<Box<dyn PowerDriver>> {
        match self.book()?.into_iter().find(|entry| entry.name == id) {
            Some(entry) => crate::open(&entry.power),
            None => Err(Error::refused(&self.target(), format!("it has no machine `{id}`"))),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::open_set;

    fn written(folder: &Path) -> String {
        let path = folder.join("machines.toml");
        let entry = |name: &str, rack: &str| {
            format!(
                "[[machine]]\nname = \"{name}\"\npower = \"fake:machines-{name}\"\nmac = [\"52:54:00:00:00:0A\"]\nrack = \"{rack}\"\n"
            )
        };
        std::fs::write(&path, [entry("n1", "r1"), entry("n2", "r1"), entry("n3", "r2")].concat()).unwrap();
        format!("machines:{}", path.display())
    }

    #[tokio::test]
    async fn machines_are_held_across_restarts_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let address = written(folder.path());
        let wish = Wish { token: "web".into(), count: 2, ..Wish::default() };
        let taken = open_set(&address).unwrap().acquire(&wish).await.unwrap();
        let set = open_set(&address).unwrap();
        assert_eq!(set.acquire(&wish).await.unwrap(), taken);
        assert_eq!(taken[0].macs, ["52:54:00:00:00:0a"]);
        let other = Wish { token: "db".into(), count: 2, ..Wish::default() };
        let error = set.acquire(&other).await.unwrap_err().to_string();
        assert!(error.contains("2 more machines are wished for and 1 are free"), "{error}");
        set.power("n1").unwrap().on().await.unwrap();
        assert_eq!(set.list().await.unwrap()[0].state, State::On);
        assert_eq!(set.known().await.unwrap()[0].state, State::Unknown);
        set.release("n1").await.unwrap();
        let listed = set.list().await.unwrap();
        assert_eq!((listed[0].held_by.clone(), listed[0].state), (None, State::On));
        assert_eq!(set.acquire(&other).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_rack_may_be_asked_for_and_a_wrong_file_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        let address = written(folder.path());
        let set = open_set(&address).unwrap();
        let wish = Wish { token: "x".into(), count: 1, rack: Some("r2".into()), ..Wish::default() };
        assert_eq!(set.acquire(&wish).await.unwrap()[0].name, "n3");
        let error = set.acquire(&Wish { count: 2, ..wish }).await.unwrap_err().to_string();
        assert!(error.contains("in rack r2"), "{error}");
        std::fs::write(folder.path().join("machines.toml"), "[[machine]]\nname = \"n1\"\npower = \"pigeon:x\"\n")
            .unwrap();
        let error = set.list().await.unwrap_err().to_string();
        assert!(error.contains("machine `n1`") && error.contains("pigeon"), "{error}");
        assert!(set.add_image("x", &Source::Machine("n1".into())).await.unwrap_err().to_string().contains("capture"));
    }

    #[tokio::test]
    async fn two_callers_never_hold_one_machine() {
        let folder = tempfile::tempdir().unwrap();
        let address = written(folder.path());
        let (one, two) = (open_set(&address).unwrap(), open_set(&address).unwrap());
        let wish = |token: &str| Wish { token: token.into(), count: 2, ..Wish::default() };
        let (a, b) = (wish("a"), wish("b"));
        let (first, second) = tokio::join!(one.acquire(&a), two.acquire(&b));
        assert_eq!([first.is_ok(), second.is_ok()].iter().filter(|ok| **ok).count(), 1);
    }
}
