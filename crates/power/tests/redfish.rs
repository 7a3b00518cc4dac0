//! The Redfish driver against the strict controller of our own: everything that the specification asks for and emulators
//! leave out, and everything that controllers do wrong.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, join_all, ready};
use power::virtual_bmc::{Rules, VirtualBmc};
use power::{Advice, BootDevice, Error, NextBoot, Outcome, PowerDriver, State, controllers, open, open_set};
use rackswarm_power as power;
use tempfile::TempDir;
use tokio::net::TcpListener;

/// A controller before a machine in memory.
struct Rig {
    bmc: VirtualBmc,
    machine: String,
    folder: TempDir,
}

impl Rig {
    async fn new(name: &str, rules: &str) -> Rig {
        Rig::before(name, rules, vec![("1".to_owned(), open(&format!("fake:{name}")).unwrap())]).await
    }

    async fn before(name: &str, rules: &str, systems: Vec<(String, Box<dyn PowerDriver>)>) -> Rig {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rules = Rules::parse(rules).unwrap();
        let bmc = VirtualBmc::start(listener, "admin", "open sesame", rules, systems).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let rig = Rig { bmc, machine: name.to_owned(), folder };
        rig.password("open sesame");
        rig
    }

    fn password(&self, text: &str) {
        std::fs::write(self.folder.path().join("password"), format!("{text}\n")).unwrap();
    }

    fn address(&self, options: &str) -> String {
        self.address_at("", options)
    }

    fn address_at(&self, path: &str, options: &str) -> String {
        let file = self.folder.path().join("password");
        format!(
            "redfish+http://admin@{}{path}?password_file={}&off_seconds=0{options}",
            self.bmc.address(),
            file.display()
        )
    }

    fn driver(&self, options: &str) -> Box<dyn PowerDriver> {
        open(&self.address(options)).unwrap()
    }

    fn machine(&self) -> power::fake::Machine {
        power::fake::machine(&self.machine).unwrap_or_default()
    }

    /// Waits until a session that nobody waited for is closed as well.
    async fn is_left_alone(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.bmc.seen().sessions > 0 {
            assert!(Instant::now() < deadline, "a session is left behind: {:?}", self.bmc.seen());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_boots_from_the_network_once_whatever_the_controller_is_like() {
    let kinds = [
        "",
        "etag=none",
        "etag=optional",
        "etag=strong",
        "task_ms=0",
        "task_ms=700",
        "settings=yes",
        "action_info=yes",
        "sessions=1",
        "busy=2",
        "drop=3",
        "late_ms=700",
        "latency_ms=30",
        "vendor=Supermicro",
        "basic=no",
    ];
    join_all(kinds.into_iter().enumerate().map(|(index, rules)| async move {
        let rig = Rig::new(&format!("kinds-{index}"), rules).await;
        let driver = rig.driver("");
        let told = |what: &str| format!("{what} with `{rules}`");
        assert_eq!(driver.state().await.unwrap(), State::Off, "{}", told("state"));
        assert_eq!(driver.next_boot().await.unwrap(), NextBoot::Standing, "{}", told("order"));
        assert_eq!(driver.boot_next(BootDevice::Network).await.unwrap(), Outcome::Done, "{}", told("boot_next"));
        assert_eq!(driver.next_boot().await.unwrap(), NextBoot::Once(BootDevice::Network), "{}", told("order"));
        assert_eq!(driver.cycle().await.unwrap(), Outcome::Done, "{}", told("cycle"));
        assert_eq!(rig.machine().booted_from, Some(BootDevice::Network), "{}", told("boot"));
        assert_eq!(driver.next_boot().await.unwrap(), NextBoot::Standing, "{}", told("the order is used up"));
        driver.on().await.unwrap();
        assert_eq!(rig.machine().starts, 1, "{}", told("on when on"));
        driver.cycle().await.unwrap();
        assert_eq!(rig.machine().booted_from, Some(BootDevice::Disk), "{}", told("second boot"));
        driver.off().await.unwrap();
        driver.off().await.unwrap();
        assert_eq!(driver.state().await.unwrap(), State::Off, "{}", told("state"));
        rig.is_left_alone().await;
        let seen = rig.bmc.seen();
        assert_eq!((seen.refused, seen.most_sessions), (0, 1), "{}: {seen:?}", told("sessions"));
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_lies_about_power_is_found_out() {
    let rig = Rig::new("liar-power", "lie=power&task_ms=0").await;
    let error = rig.driver("&settle_seconds=1").on().await.unwrap_err();
    assert!(error.to_string().contains("accepted `On` 2 times") && error.to_string().contains("127.0.0.1"), "{error}");
    assert_eq!(error.advice(), Advice::Retry);
    let rig = Rig::new("liar-state", "lie=state").await;
    assert_eq!(rig.driver("").state().await.unwrap(), State::On);
    let error = rig.driver("&settle_seconds=1").off().await.unwrap_err();
    assert!(
        error.to_string().contains("InvalidOperationForSystemState") || error.to_string().contains("in that state"),
        "{error}"
    );
    rig.is_left_alone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_lies_about_the_boot_order_is_found_out() {
    let rig = Rig::new("order-ignored", "once=ignored").await;
    let error = rig.driver("&settle_seconds=1").boot_next(BootDevice::Network).await.unwrap_err();
    assert!(error.to_string().contains("accepted the boot order `Once Pxe`, but reports `Disabled None`"), "{error}");

    let rig = Rig::new("order-lasting", "once=continuous").await;
    let error = rig.driver("&settle_seconds=1").boot_next(BootDevice::Network).await.unwrap_err();
    assert!(error.to_string().contains("reports `Continuous Pxe`; it was taken back"), "{error}");
    assert_eq!(rig.driver("").next_boot().await.unwrap(), NextBoot::Standing);
    let accepting = rig.driver("&once=continuous");
    accepting.boot_next(BootDevice::Network).await.unwrap();
    accepting.cycle().await.unwrap();
    assert_eq!(rig.machine().booted_from, Some(BootDevice::Network));
    assert_eq!(accepting.next_boot().await.unwrap(), NextBoot::Always(BootDevice::Disk));
    accepting.cycle().await.unwrap();
    assert_eq!(rig.machine().booted_from, Some(BootDevice::Disk));

    // Shown as it should be and not kept to: only the machine can tell, by what it boots.
    let rig = Rig::new("order-forgotten", "once=forgotten").await;
    let driver = rig.driver("");
    driver.boot_next(BootDevice::Network).await.unwrap();
    driver.cycle().await.unwrap();
    assert_eq!(rig.machine().booted_from, Some(BootDevice::Disk));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_never_locks_the_account() {
    for auth in ["", "&auth=basic"] {
        let rig = Rig::new("locked", "lockout=3").await;
        rig.password("hunter2");
        for _ in 0..10 {
            let error = rig.driver(auth).state().await.unwrap_err();
            assert_eq!(error.advice(), Advice::Refuse);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        assert_eq!((rig.bmc.seen().refused, rig.bmc.seen().locked), (1, false), "one try, then none");
        rig.password("swordfish");
        rig.driver(auth).state().await.unwrap_err();
        rig.password("a third one");
        let error = rig.driver(auth).state().await.unwrap_err().to_string();
        assert!(error.contains("as many as are tried"), "{error}");
        assert_eq!((rig.bmc.seen().refused, rig.bmc.seen().locked), (2, false));
    }
    let rig = Rig::new("corrected", "lockout=3").await;
    rig.password("hunter2");
    rig.driver("").state().await.unwrap_err();
    rig.password("open sesame");
    assert_eq!(rig.driver("").state().await.unwrap(), State::Off, "a corrected file is used at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_controller_is_said_to_be_full_and_basic_needs_no_session() {
    let rig = Rig::new("full", "sessions=1").await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let login = "{\"UserName\":\"admin\",\"Password\":\"open sesame\"}";
    let place = format!("http://{}/redfish/v1/SessionService/Sessions", rig.bmc.address());
    assert_eq!(client.post(place).body(login).send().await.unwrap().status(), 201);
    let error = rig.driver("&attempts=1").state().await.unwrap_err();
    assert!(error.to_string().contains("all of its sessions are taken"), "{error}");
    assert_eq!(error.advice(), Advice::Retry);
    assert_eq!(rig.driver("&auth=basic").state().await.unwrap(), State::Off);
    assert_eq!(rig.bmc.seen().refused, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_gives_up_leaves_no_session_and_many_callers_share_one() {
    let rig = Rig::new("given-up", "latency_ms=400").await;
    let error = rig.driver("&limit_seconds=1").cycle().await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    rig.is_left_alone().await;

    let rig = Rig::new("shared", "sessions=1&latency_ms=5").await;
    let drivers: Vec<_> = (0..20).map(|_| rig.driver("")).collect();
    for state in join_all(drivers.iter().map(|driver| driver.state())).await {
        assert_eq!(state.unwrap(), State::Off);
    }
    let seen = rig.bmc.seen();
    assert_eq!((seen.logins, seen.most_sessions, seen.sessions), (20, 1, 0));
    let name = format!("redfish admin@{}", rig.bmc.address());
    let counts = controllers().into_iter().find(|counts| counts.controller == name).unwrap();
    assert_eq!((counts.sessions_opened, counts.sessions_closed, counts.sessions_lost), (20, 20, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_session_is_renewed_once_and_a_busy_controller_waited_for() {
    let rig = Rig::new("dropped", "drop=1&task_ms=50").await;
    let driver = rig.driver("");
    driver.boot_next(BootDevice::Network).await.unwrap();
    driver.cycle().await.unwrap();
    assert_eq!(rig.machine().booted_from, Some(BootDevice::Network));
    rig.is_left_alone().await;
    assert_eq!(rig.bmc.seen().refused, 0);

    let rig = Rig::new("self-test", "post_ms=1200&task_ms=0").await;
    let driver = rig.driver("");
    driver.on().await.unwrap();
    driver.boot_next(BootDevice::Network).await.unwrap();

    let rig = Rig::new("too-busy", "busy=1000").await;
    let error = rig.driver("&attempts=2").state().await.unwrap_err();
    assert!(error.to_string().contains("cannot do GET /redfish/v1/ now (status 503"), "{error}");
}

/// Refuses to be switched.
struct Broken;

impl PowerDriver for Broken {
    fn state(&self) -> BoxFuture<'_, power::Result<State>> {
        Box::pin(ready(Ok(State::Off)))
    }

    fn on(&self) -> BoxFuture<'_, power::Result<Outcome>> {
        let why = "the fuse has blown".to_owned();
        Box::pin(ready(Err(Error::Refused { target: "machine".into(), why })))
    }

    fn off(&self) -> BoxFuture<'_, power::Result<Outcome>> {
        self.on()
    }

    fn cycle(&self) -> BoxFuture<'_, power::Result<Outcome>> {
        self.on()
    }

    fn boot_next(&self, _: BootDevice) -> BoxFuture<'_, power::Result<Outcome>> {
        self.on()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fails_or_never_ends_is_told_with_its_reason() {
    for rules in ["task_ms=100", "task_ms=0"] {
        let rig = Rig::before("blown", rules, vec![("1".into(), Box::new(Broken))]).await;
        let error = rig.driver("&settle_seconds=1").on().await.unwrap_err();
        assert!(error.to_string().contains("the fuse has blown"), "{rules}: {error}");
    }
    let rig = Rig::new("endless", "task_ms=60000").await;
    let error = rig.driver("&task_seconds=1&settle_seconds=1").on().await.unwrap_err();
    assert!(error.to_string().contains("not done after 1 s"), "{error}");
    rig.is_left_alone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chassis_is_a_set_and_its_systems_are_named() {
    let systems = |names: [&str; 2]| names.map(|name| (name.to_owned(), open(&format!("fake:{name}")).unwrap())).into();
    let rig = Rig::before("chassis", "", systems(["blade1", "blade2"])).await;
    let error = rig.driver("").on().await.unwrap_err().to_string();
    assert!(error.contains("2 systems") && error.contains("/redfish/v1/Systems/blade1"), "{error}");
    open(&rig.address_at("/redfish/v1/Systems/blade2", "")).unwrap().on().await.unwrap();
    let set = open_set(&rig.address("")).unwrap();
    let listed = set.list().await.unwrap();
    let states: Vec<_> = listed.iter().map(|one| (one.id.as_str(), one.state)).collect();
    assert_eq!(states, [("blade1", State::Off), ("blade2", State::On)]);
    assert!(listed[0].macs.len() == 1 && listed[0].uuid.is_some() && listed[0].macs != listed[1].macs, "{listed:?}");
    assert!(listed[1].power.contains("&off_seconds=0"), "the set's options are its machines': {}", listed[1].power);
    assert_eq!(open(&listed[1].power).unwrap().state().await.unwrap(), State::On);
    set.power("blade1").unwrap().on().await.unwrap();
    assert!(power::fake::machine("blade1").unwrap().on);
    assert!(set.acquire(&power::Wish::default()).await.unwrap_err().to_string().contains("machines:"));
    let error = open(&rig.address_at("/redfish/v1/Systems/blade3", "")).unwrap().state().await.unwrap_err().to_string();
    assert!(error.contains("no such resource") || error.contains("no such system"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_starts_anew_without_taking_the_power_and_wakes_what_is_off() {
    let rig = Rig::new("reset", "task_ms=0").await;
    let driver = rig.driver("");
    driver.reset().await.unwrap();
    assert_eq!((rig.machine().on, rig.machine().starts), (true, 1));
    driver.boot_next(BootDevice::Network).await.unwrap();
    driver.reset().await.unwrap();
    let machine = rig.machine();
    assert_eq!((machine.starts, machine.booted_from), (2, Some(BootDevice::Network)));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_never_answered_are_asked_again() {
    let rig = Rig::new("lossy", "loss=15").await;
    let driver = rig.driver("&call_seconds=1&attempts=8");
    driver.boot_next(BootDevice::Network).await.unwrap();
    driver.cycle().await.unwrap();
    assert_eq!(rig.machine().booted_from, Some(BootDevice::Network));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_cannot_send_our_password_elsewhere() {
    use axum::Router;
    use axum::routing::get;
    let thief = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = format!("http://{}/redfish/v1/Systems", thief.local_addr().unwrap());
    let root = serde_json::json!({"Systems": {"@odata.id": elsewhere}}).to_string();
    let app = Router::new().route("/redfish/v1/", get(move || async move { root }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "open sesame\n").unwrap();
    let address = format!("redfish+http://admin@{at}?password_file={}/password", folder.path().display());
    let error = open(&address).unwrap().state().await.unwrap_err().to_string();
    assert!(error.contains("not a path of its own"), "{error}");
    assert!(tokio::time::timeout(Duration::from_millis(50), thief.accept()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_controller_is_told_apart_from_one_that_is_off() {
    let rig = Rig::new("nobody", "").await;
    let closed = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    let password = rig.folder.path().join("password");
    let at = |host: String| {
        format!("redfish+http://admin@{host}?password_file={}&attempts=1&call_seconds=1", password.display())
    };
    let error = open(&at(closed.to_string())).unwrap().state().await.unwrap_err();
    assert!(error.to_string().contains("no connection came about"), "{error}");
    assert_eq!(error.advice(), Advice::Retry);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = open(&at(silent.local_addr().unwrap().to_string())).unwrap().state().await.unwrap_err();
    assert!(error.to_string().contains("no answer to GET /redfish/v1/ within 1 s"), "{error}");
    std::fs::remove_file(&password).unwrap();
    let error = open(&at(rig.bmc.address().to_string())).unwrap().state().await.unwrap_err();
    assert!(error.to_string().contains("password file"), "{error}");
    assert_eq!(rig.bmc.seen().requests, 0, "nothing is asked without a password");
}
