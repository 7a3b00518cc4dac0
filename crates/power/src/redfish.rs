//! `redfish+http://USER@HOST[:PORT][/redfish/v1/Systems/ID]?password_file=/path` drives a management controller that speaks
//! Redfish (DSP0266).
//!
//! Controllers answer "done" before it is so, answer late, forget, and lock accounts. So: one operation at a time at each
//! controller, one session for it, closed whatever happens and counted; a refused password is not tried again; every
//! change is made under `If-Match` where the controller has ETags, its task is followed to the end, and what was asked is
//! read back until it is so. What makes differ in stands as rows in [`crate::quirks`].
//!
//! There is no TLS in this version, and the address has to say so by `redfish+http:`.

mod messages;
mod system;
mod talk;

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::address::Server;
use crate::gate::{Budget, Gate};
use crate::set::{Image, Kind, Resource, ResourceSet, Set, Source, Wish, no_images};
use crate::{Address, BootDevice, Driver, Error, NextBoot, Outcome, PowerDriver, Result, State};

use self::talk::Talk;

pub(crate) const DRIVER: Driver = Driver {
    scheme: "redfish",
    help: "a management controller that speaks Redfish, over plain HTTP as yet: password_file=/path (needed) \
           auth=session|basic network=pxe|uefi_http mode=uefi|legacy once=strict|continuous attempts=1..10 \
           call_seconds=1..120 settle_seconds=1..300 task_seconds=1..600 off_seconds=0..60 login_attempts=1..5 \
           login_window_seconds=1..86400; the path names the system when the controller has several",
    example: "redfish+http://admin@bmc7.example/redfish/v1/Systems/1?password_file=/etc/rackswarm/bmc-password",
    limit: Duration::from_secs(300),
    controller: |address| address.controller(PORT),
    at_once: 1,
    network_boot: true,
    by_hand: false,
    parse,
};

const PORT: u16 = 80;

/// How the login is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Auth {
    /// A session where there is one and no quirk speaks against it.
    Either,
    Session,
    Basic,
}

#[derive(Debug, Clone)]
pub(crate) struct Redfish {
    server: Server,
    user: String,
    password_file: PathBuf,
    system: Option<String>,
    auth: Auth,
    network: &'static str,
    mode: Option<&'static str>,
    once: Option<bool>,
    attempts: u32,
    call_limit: Duration,
    settle_limit: Duration,
    task_limit: Duration,
    off_pause: Duration,
    budget: Budget,
    /// The options as they were given, for the addresses of a set's machines.
    options: String,
}

fn parse(address: &mut Address) -> Result<Box<dyn PowerDriver>> {
    Ok(Box::new(Redfish::parse(address)?))
}

impl Redfish {
    pub(crate) fn parse(address: &mut Address) -> Result<Redfish> {
        address.plain_http()?;
        let server = address.server(PORT)?;
        let user =
            server.user.clone().ok_or_else(|| address.wrong("the user is missing: `redfish+http://user@host`"))?;
        let password_file = address.file("password_file")?.ok_or_else(|| {
            address.wrong("`password_file=` is missing: the file whose first line is the controller's password")
        })?;
        let system = match server.path.trim_end_matches('/') {
            "" => None,
            path if path.starts_with("/redfish/v1/Systems/") => Some(server.path.clone()),
            path => return Err(address.wrong(format!("`{path}` is not a system; it begins with /redfish/v1/Systems/"))),
        };
        let seconds = |given: Option<u64>, otherwise| Duration::from_secs(given.unwrap_or(otherwise));
        Ok(Redfish {
            server,
            user,
            password_file,
            system,
            auth: address.word("auth", &[("session", Auth::Session), ("basic", Auth::Basic)])?.unwrap_or(Auth::Either),
            network: address.word("network", &[("pxe", "Pxe"), ("uefi_http", "UefiHttp")])?.unwrap_or("Pxe"),
            mode: address.word("mode", &[("uefi", "UEFI"), ("legacy", "Legacy")])?,
            once: address.word("once", &[("strict", false), ("continuous", true)])?,
            attempts: address.number("attempts", 1..=10)?.unwrap_or(4),
            call_limit: seconds(address.number("call_seconds", 1..=120)?, 30),
            settle_limit: seconds(address.number("settle_seconds", 1..=300)?, 60),
            task_limit: seconds(address.number("task_seconds", 1..=600)?, 120),
            off_pause: seconds(address.number("off_seconds", 0..=60)?, 2),
            budget: Budget::take(address)?,
            options: address.options_without(&["limit_seconds"]),
        })
    }

    fn target(&self) -> String {
        format!("BMC {}", self.server)
    }

    /// One operation: wait for the turn, log in, work, log out.
    async fn work(&self, ask: Ask) -> Result<Reply> {
        let gate = Gate::of(&format!("redfish {}@{}", self.user, self.server));
        let _turn = gate.turn().await;
        let talk = Talk::open(self, &gate).await?;
        let reply = self.answer(&talk, ask).await;
        talk.close().await;
        reply
    }

    async fn done(&self, ask: Ask) -> Result<Outcome> {
        self.work(ask).await.map(|_| Outcome::Done)
    }

    /// All systems behind this controller, for a resource set.
    pub(crate) async fn systems(&self) -> Result<Vec<Resource>> {
        match self.work(Ask::Systems).await? {
            Reply::Systems(systems) => Ok(systems),
            _ => Ok(Vec::new()),
        }
    }

    /// The power address of one of its systems, made from the address of the set with its options.
    fn address_of(&self, path: &str) -> String {
        format!("redfish+http://{}@{}{path}?{}", self.user, self.server, self.options)
    }
}

/// What is wanted of a controller.
#[derive(Debug, Clone, Copy)]
enum Ask {
    State,
    Switch(State),
    Cycle,
    Reset,
    BootNext(BootDevice),
    NextBoot,
    Systems,
}

/// What came of it.
enum Reply {
    State(State),
    NextBoot(NextBoot),
    Done,
    Systems(Vec<Resource>),
}

impl PowerDriver for Redfish {
    fn state(&self) -> BoxFuture<'_, Result<State>> {
        Box::pin(async {
            match self.work(Ask::State).await? {
                Reply::State(state) => Ok(state),
                _ => Ok(State::Unknown),
            }
        })
    }

    fn on(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.done(Ask::Switch(State::On)))
    }

    fn off(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.done(Ask::Switch(State::Off)))
    }

    /// Off and on as two steps, each read back: a restart cannot be told from a command that did nothing.
    fn cycle(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.done(Ask::Cycle))
    }

    fn reset(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.done(Ask::Reset))
    }

    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.done(Ask::BootNext(device)))
    }

    fn next_boot(&self) -> BoxFuture<'_, Result<NextBoot>> {
        Box::pin(async {
            match self.work(Ask::NextBoot).await? {
                Reply::NextBoot(next) => Ok(next),
                _ => Ok(NextBoot::Unknown),
            }
        })
    }
}

impl Resource {
    /// A system behind a controller.
    fn of_system(bmc: &Redfish, path: &str, system: &serde_json::Value) -> Resource {
        let text = |name: &str| system.get(name).and_then(serde_json::Value::as_str).unwrap_or("").trim().to_owned();
        Resource {
            id: text("Id"),
            // `Name` is what the maker calls it, often "System" for every one of them.
            name: text("HostName"),
            kind: Kind::Physical,
            state: system::power_state(system),
            power: bmc.address_of(path),
            about: [text("Manufacturer"), text("Model"), text("SerialNumber")].join(" ").trim().to_owned(),
            uuid: Some(text("UUID")).filter(|uuid| !uuid.is_empty()),
            ..Resource::default()
        }
    }
}

pub(crate) const SET: Set = Set {
    scheme: "redfish",
    help: "all systems behind one Redfish controller, such as the blades of a chassis; takes the driver's options",
    example: "redfish+http://admin@chassis3.example?password_file=/etc/rackswarm/bmc-password",
    limit: Duration::from_secs(300),
    credentials: Some("password_file"),
    parse: |address| {
        let bmc = Redfish::parse(address)?;
        if bmc.system.is_some() {
            return Err(address.wrong("a set is the whole controller; leave the system's path away"));
        }
        Ok(Box::new(Systems { bmc }))
    },
};

/// The systems of a controller. Nobody holds them: they are taken by being enrolled as nodes.
struct Systems {
    bmc: Redfish,
}

impl ResourceSet for Systems {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Resource>>> {
        Box::pin(self.bmc.systems())
    }

    fn acquire<'a>(&'a self, _wish: &'a Wish) -> BoxFuture<'a, Result<Vec<Resource>>> {
        let error = Error::refused(
            &self.bmc.target(),
            "a controller does not keep who holds its systems; list them, and put those you want into a `machines:` set",
        );
        Box::pin(std::future::ready(Err(error)))
    }

    fn release<'a>(&'a self, _id: &'a str) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(std::future::ready(Ok(Outcome::Done)))
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<Image>>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn add_image<'a>(&'a self, _name: &'a str, _source: &'a Source) -> BoxFuture<'a, Result<Image>> {
        no_images(&self.bmc.target())
    }

    fn power(&self, id: &str) -> Result<Box<dyn PowerDriver>> {
        if !crate::address::plain(id) || id.contains(['/', '?']) {
            return Err(Error::refused(&self.bmc.target(), format!("`{id}` is not the id of a system")));
        }
        crate::open(&self.bmc.address_of(&format!("/redfish/v1/Systems/{id}")))
    }
}
