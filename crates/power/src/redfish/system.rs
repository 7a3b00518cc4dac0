//! Power and boot order of one system: what is asked, and how it is read back.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::talk::Talk;
use super::{Ask, Redfish, Reply};
use crate::quirks::{Effect, Facts};
use crate::set::Resource;
use crate::{Advice, BootDevice, Error, NextBoot, Result, State, settle};

const POLL: Duration = Duration::from_millis(500);
/// How long a changed boot order may take to be shown.
const BOOT_SETTLE: Duration = Duration::from_secs(15);
/// A power command that had no effect is sent again so often.
const SENDS: u32 = 2;
/// More members than a chassis has blades are not a chassis.
const MEMBERS: usize = 256;
/// Network cards of one system that are asked for.
const CARDS: usize = 32;

impl Redfish {
    pub(super) async fn answer(&self, talk: &Talk, ask: Ask) -> Result<Reply> {
        if matches!(ask, Ask::Systems) {
            return Ok(Reply::Systems(self.all(talk).await?));
        }
        let path = self.path(talk).await?;
        match ask {
            Ask::State => Ok(Reply::State(power_state(&talk.get(&path).await?))),
            Ask::Switch(wanted) => self.switch(talk, &path, wanted).await,
            Ask::Cycle => self.cycle(talk, &path).await,
            Ask::Reset => self.restart(talk, &path).await,
            Ask::BootNext(device) => self.set_boot(talk, &path, device).await,
            Ask::NextBoot => {
                let boot = self.boot(talk, &path).await?;
                Ok(Reply::NextBoot(boot.next()))
            }
            Ask::Systems => Ok(Reply::Done),
        }
    }

    /// The system that the address names, or the only one.
    async fn path(&self, talk: &Talk) -> Result<String> {
        if let Some(path) = &self.system {
            return Ok(path.clone());
        }
        let mut members = self.members(talk).await?;
        match members.len() {
            1 => Ok(members.remove(0)),
            0 => Err(Error::refused(&self.target(), "it has no system; is this a switch's or a shelf's controller?")),
            count => {
                let some = members.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
                Err(Error::refused(
                    &self.target(),
                    format!("it has {count} systems, so the address must name one of them by its path: {some}"),
                ))
            }
        }
    }

    async fn members(&self, talk: &Talk) -> Result<Vec<String>> {
        let systems = talk.reference(&talk.root, "Systems").ok_or_else(|| {
            Error::refused(&self.target(), "its service root has no Systems; is this a Redfish service of a machine?")
        })??;
        let collection = talk.get(&systems).await?;
        let listed = collection.get("Members").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let references = listed.iter().take(MEMBERS).filter_map(|member| member.get("@odata.id")?.as_str());
        references.map(|reference| talk.local(reference)).collect()
    }

    async fn all(&self, talk: &Talk) -> Result<Vec<Resource>> {
        let mut all = Vec::new();
        for path in self.members(talk).await? {
            let system = talk.get(&path).await?;
            let macs = self.cards(talk, &system).await?;
            all.push(Resource { macs, ..Resource::of_system(self, &path, &system) });
        }
        Ok(all)
    }

    /// The MAC addresses of a system's network cards. Some controllers list none while the machine is off, or refuse to;
    /// its UUID identifies the machine then.
    async fn cards(&self, talk: &Talk, system: &Value) -> Result<Vec<String>> {
        let Some(place) = talk.reference(system, "EthernetInterfaces") else { return Ok(Vec::new()) };
        let place = place?;
        let listed = match talk.get(&place).await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::debug!(bmc = self.target(), %error, "its network cards are not told");
                return Ok(Vec::new());
            }
        };
        let mut macs = Vec::new();
        let members = listed.get("Members").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for member in members.iter().take(CARDS).filter_map(|member| member.get("@odata.id")?.as_str()) {
            let Ok(card) = talk.get(&talk.local(member)?).await else { continue };
            let told = ["PermanentMACAddress", "MACAddress"].iter().find_map(|name| mac(card.get(name)?.as_str()?));
            macs.extend(told.filter(|mac| !macs.contains(mac)));
        }
        Ok(macs)
    }

    async fn switch(&self, talk: &Talk, path: &str, wanted: State) -> Result<Reply> {
        self.bring(talk, path, wanted).await?;
        if wanted == State::On {
            self.restore_order(talk, path).await?;
        }
        Ok(Reply::Done)
    }

    async fn cycle(&self, talk: &Talk, path: &str) -> Result<Reply> {
        if self.bring(talk, path, State::Off).await? {
            sleep(self.off_pause).await;
        }
        self.switch(talk, path, State::On).await
    }

    /// Starts a system that is on anew. A controller without such a reset takes the power instead.
    async fn restart(&self, talk: &Talk, path: &str) -> Result<Reply> {
        let system = talk.get(path).await?;
        let (place, action) = self.reset_action(talk, path, &system)?;
        let offered = self.offered(talk, &action).await?;
        let restarts = offered.is_none_or(|words| words.iter().any(|word| word == "ForceRestart"));
        if power_state(&system) != State::On || !restarts {
            return self.cycle(talk, path).await;
        }
        talk.act(&place, &json!({"ResetType": "ForceRestart"})).await?;
        if self.settles(talk, path, State::On).await? {
            return Ok(Reply::Done);
        }
        Err(Error::transient(
            &self.target(),
            format!(
                "it accepted `ForceRestart`, but {} s later it does not report `on`; look at the machine, or raise `settle_seconds=`",
                self.settle_limit.as_secs()
            ),
        ))
    }

    /// Where resets are sent to, and what is said about them.
    fn reset_action(&self, talk: &Talk, path: &str, system: &Value) -> Result<(String, Value)> {
        let action = system.pointer("/Actions/#ComputerSystem.Reset").cloned().unwrap_or(Value::Null);
        match action.get("target").and_then(Value::as_str) {
            Some(place) => Ok((talk.local(place)?, action)),
            None => Err(Error::refused(&self.target(), format!("{path} has no reset action; use another driver"))),
        }
    }

    /// Brings the system to a state and reads it back; false when it was so already.
    async fn bring(&self, talk: &Talk, path: &str, wanted: State) -> Result<bool> {
        let system = talk.get(path).await?;
        if power_state(&system) == wanted {
            return Ok(false);
        }
        let (place, action) = self.reset_action(talk, path, &system)?;
        let word = self.reset_type(talk, &action, wanted).await?;
        let mut trouble = None;
        for _ in 0..SENDS {
            // What was sent may have worked although the answer says otherwise, or got lost: the state decides.
            match talk.act(&place, &json!({"ResetType": word})).await {
                Err(error) if error.advice() == Advice::Refuse => return Err(error),
                Err(error) => trouble = Some(error),
                Ok(()) => trouble = None,
            }
            if self.settles(talk, path, wanted).await? {
                return Ok(true);
            }
        }
        Err(trouble.unwrap_or_else(|| {
            Error::transient(
                &self.target(),
                format!(
                    "it accepted `{word}` {SENDS} times, but {} s later it still does not report `{wanted}`; look at the machine, or raise `settle_seconds=`",
                    self.settle_limit.as_secs()
                ),
            )
        }))
    }

    /// Waits until the state is so; false at the deadline. A controller that is silent for a moment does not end the wait.
    async fn settles(&self, talk: &Talk, path: &str, wanted: State) -> Result<bool> {
        let asked = || async { Ok((power_state(&talk.get(path).await?) == wanted).then_some(())) };
        Ok(settle::until(self.settle_limit, POLL, asked).await?.is_some())
    }

    /// The first word that means it and that the system allows; without a list of allowed words, the specification's.
    async fn reset_type(&self, talk: &Talk, action: &Value, wanted: State) -> Result<&'static str> {
        let words: &[&str] = if wanted == State::On { &["On", "ForceOn"] } else { &["ForceOff"] };
        let Some(allowed) = self.offered(talk, action).await? else { return Ok(words[0]) };
        words.iter().copied().find(|word| allowed.iter().any(|one| one == word)).ok_or_else(|| {
            Error::refused(
                &self.target(),
                format!(
                    "it offers the resets {}, none of which switches it {wanted} for sure; use another driver",
                    allowed.join(", ")
                ),
            )
        })
    }

    /// The words that the action allows, where it says so.
    async fn offered(&self, talk: &Talk, action: &Value) -> Result<Option<Vec<String>>> {
        if let Some(allowed) = strings(action.get("ResetType@Redfish.AllowableValues")) {
            return Ok(Some(allowed));
        }
        match action.get("@Redfish.ActionInfo").and_then(Value::as_str) {
            Some(place) => Ok(action_info(&talk.get(&talk.local(place)?).await?)),
            None => Ok(None),
        }
    }

    /// Reads the boot section from where it is changed: the settings resource, when the system has one that holds it.
    async fn boot(&self, talk: &Talk, path: &str) -> Result<Boot> {
        let system = talk.get(path).await?;
        let facts = talk.facts.clone().with_system(&system);
        if let Some(place) = system.pointer("/@Redfish.Settings/SettingsObject/@odata.id").and_then(Value::as_str) {
            let place = talk.local(place)?;
            let settings = talk.get(&place).await?;
            if settings.pointer("/Boot/BootSourceOverrideTarget").is_some() {
                return Ok(Boot {
                    path: place,
                    section: settings["Boot"].clone(),
                    shown: system["Boot"].clone(),
                    facts,
                });
            }
        }
        let section = system["Boot"].clone();
        let names = ["BootSourceOverrideTarget", "BootSourceOverrideEnabled"];
        if names.iter().all(|name| section.get(name).is_none()) {
            return Err(Error::refused(
                &self.target(),
                format!(
                    "{path} has no boot override; set the machine to boot from the network by hand, or use another driver"
                ),
            ));
        }
        Ok(Boot { path: path.to_owned(), shown: section.clone(), section, facts })
    }

    /// Sets the override for one start and reads it back.
    async fn set_boot(&self, talk: &Talk, path: &str, device: BootDevice) -> Result<Reply> {
        let boot = self.boot(talk, path).await?;
        let targets = boot.targets();
        let allows = |word: &str| targets.as_ref().is_none_or(|targets| targets.iter().any(|one| one == word));
        let target = match device {
            BootDevice::Network => self.network,
            BootDevice::Disk => "Hdd",
        };
        let mut wanted = Order { enabled: "Once", target };
        if !allows(target) {
            if device == BootDevice::Network {
                let offered = targets.unwrap_or_default().join(", ");
                return Err(Error::refused(
                    &self.target(),
                    format!(
                        "it cannot boot once from `{target}`, only from: {offered}; enable network boot in the firmware, or say `network=` in the address"
                    ),
                ));
            }
            // The standing order is disk first, so to override nothing is to boot from the disk.
            wanted = Order { enabled: "Disabled", target: "None" };
        }
        self.write_order(talk, &boot, &wanted).await?;
        self.read_order(talk, path, &wanted, self.accepts_continuous(&boot.facts)).await?;
        Ok(Reply::Done)
    }

    async fn write_order(&self, talk: &Talk, boot: &Boot, wanted: &Order) -> Result<()> {
        let mut section =
            json!({"BootSourceOverrideEnabled": wanted.enabled, "BootSourceOverrideTarget": wanted.target});
        let shown = boot.section.get("BootSourceOverrideMode").and_then(Value::as_str);
        let repeated = shown.filter(|_| boot.facts.has(Effect::RepeatBootMode));
        if let Some(mode) = self.mode.or(repeated) {
            section["BootSourceOverrideMode"] = json!(mode);
        }
        talk.change(&boot.path, &json!({"Boot": section})).await
    }

    /// Reads until the order is shown. What is shown instead at the deadline is an error: a machine that boots from the
    /// wrong device is found out minutes later otherwise.
    async fn read_order(&self, talk: &Talk, path: &str, wanted: &Order, continuous: bool) -> Result<()> {
        let deadline = Instant::now() + BOOT_SETTLE.min(self.settle_limit);
        loop {
            let boot = self.boot(talk, path).await?;
            let (enabled, target) = boot.order();
            let enough =
                enabled == wanted.enabled || (continuous && enabled == "Continuous" && wanted.enabled == "Once");
            if enough && (target == wanted.target || wanted.enabled == "Disabled") {
                return Ok(());
            }
            if Instant::now() < deadline {
                sleep(POLL).await;
                continue;
            }
            let lasting = enabled == "Continuous" && wanted.enabled == "Once" && target == wanted.target;
            if lasting {
                // Left as it is, the machine would boot from the network for ever.
                self.write_order(talk, &boot, &Order { enabled: "Disabled", target: "None" }).await?;
            }
            let hint = if lasting {
                "; it was taken back. For a virtual controller `once=continuous` in the address accepts that"
            } else {
                "; look at the firmware's boot settings, or update the controller"
            };
            return Err(Error::transient(
                &self.target(),
                format!(
                    "it accepted the boot order `{} {}`, but reports `{enabled} {target}`{hint}",
                    wanted.enabled, wanted.target
                ),
            ));
        }
    }

    /// Puts the standing order back once the machine is on, where a one-time override was stored as a lasting one.
    async fn restore_order(&self, talk: &Talk, path: &str) -> Result<()> {
        let facts = talk.facts.clone();
        if !self.accepts_continuous(&facts) {
            return Ok(());
        }
        let boot = self.boot(talk, path).await?;
        let (enabled, target) = boot.order();
        if enabled != "Continuous" || target != self.network {
            return Ok(());
        }
        let standing = Order { enabled: "Continuous", target: "Hdd" };
        self.write_order(talk, &boot, &standing).await?;
        self.read_order(talk, path, &standing, true).await
    }

    fn accepts_continuous(&self, facts: &Facts) -> bool {
        self.once.unwrap_or_else(|| facts.has(Effect::OnceBecomesContinuous))
    }
}

/// An override as the specification writes it.
struct Order {
    enabled: &'static str,
    target: &'static str,
}

/// The boot section and where it is changed.
struct Boot {
    path: String,
    section: Value,
    shown: Value,
    facts: Facts,
}

impl Boot {
    /// `BootSourceOverrideEnabled` and `BootSourceOverrideTarget`.
    fn order(&self) -> (&str, &str) {
        let text = |name: &str| self.section.get(name).and_then(Value::as_str).unwrap_or("nothing");
        (text("BootSourceOverrideEnabled"), text("BootSourceOverrideTarget"))
    }

    fn targets(&self) -> Option<Vec<String>> {
        let name = "BootSourceOverrideTarget@Redfish.AllowableValues";
        strings(self.section.get(name)).or_else(|| strings(self.shown.get(name)))
    }

    fn next(&self) -> NextBoot {
        let (enabled, target) = self.order();
        let device = match target {
            "Pxe" | "UefiHttp" => BootDevice::Network,
            "Hdd" => BootDevice::Disk,
            "None" => return NextBoot::Standing,
            _ if enabled == "Disabled" => return NextBoot::Standing,
            _ => return NextBoot::Unknown,
        };
        match enabled {
            "Once" => NextBoot::Once(device),
            "Continuous" => NextBoot::Always(device),
            "Disabled" => NextBoot::Standing,
            _ => NextBoot::Unknown,
        }
    }
}

/// Six octets in lower case with colons between; anything else, and an address that means nobody, is none.
fn mac(text: &str) -> Option<String> {
    let text = text.trim().to_lowercase().replace('-', ":");
    let octets: Vec<&str> = text.split(':').collect();
    let fine =
        octets.len() == 6 && octets.iter().all(|octet| octet.len() == 2 && u8::from_str_radix(octet, 16).is_ok());
    (fine && text != "00:00:00:00:00:00" && text != "ff:ff:ff:ff:ff:ff").then_some(text)
}

/// `On` and `Off` as they are; everything in between or unheard of is unknown.
pub(super) fn power_state(system: &Value) -> State {
    match system.get("PowerState").and_then(Value::as_str) {
        Some("On") => State::On,
        Some("Off") => State::Off,
        _ => State::Unknown,
    }
}

fn strings(value: Option<&Value>) -> Option<Vec<String>> {
    let list = value?.as_array()?;
    Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// `AllowableValues` of `ResetType` out of an action's description.
fn action_info(info: &Value) -> Option<Vec<String>> {
    let parameters = info.get("Parameters")?.as_array()?;
    let reset = parameters.iter().find(|one| one.get("Name").and_then(Value::as_str) == Some("ResetType"))?;
    strings(reset.get("AllowableValues"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn only_on_and_off_are_taken_for_sure() {
        for (word, state) in [
            (json!("On"), State::On),
            (json!("Off"), State::Off),
            (json!("PoweringOn"), State::Unknown),
            (json!("Paused"), State::Unknown),
            (json!(null), State::Unknown),
        ] {
            assert_eq!(power_state(&json!({"PowerState": word})), state, "{word}");
        }
        assert_eq!(power_state(&json!({})), State::Unknown);
    }

    #[test]
    fn only_addresses_of_cards_are_taken() {
        assert_eq!(mac("52-54-00-AB-CD-EF").as_deref(), Some("52:54:00:ab:cd:ef"));
        for none in ["", "N/A", "00:00:00:00:00:00", "52:54:00:ab:cd", "52:54:00:ab:cd:ef:01", "5:54:00:ab:cd:eff"] {
            assert_eq!(mac(none), None, "{none}");
        }
    }

    #[test]
    fn the_override_is_read_as_the_specification_means_it() {
        for (enabled, target, next) in [
            ("Once", "Pxe", NextBoot::Once(BootDevice::Network)),
            ("Once", "UefiHttp", NextBoot::Once(BootDevice::Network)),
            ("Continuous", "Hdd", NextBoot::Always(BootDevice::Disk)),
            ("Disabled", "Pxe", NextBoot::Standing),
            ("Disabled", "None", NextBoot::Standing),
            ("Once", "Usb", NextBoot::Unknown),
            ("Disabled", "Usb", NextBoot::Standing),
        ] {
            let section = json!({"BootSourceOverrideEnabled": enabled, "BootSourceOverrideTarget": target});
            let boot = Boot { path: String::new(), shown: Value::Null, section, facts: Facts::default() };
            assert_eq!(boot.next(), next, "{enabled} {target}");
        }
    }

    #[test]
    fn allowed_resets_are_read_from_the_action_s_description() {
        let info =
            json!({"Parameters": [{"Name": "Other"}, {"Name": "ResetType", "AllowableValues": ["On", "ForceOff"]}]});
        assert_eq!(action_info(&info).unwrap(), ["On", "ForceOff"]);
        assert_eq!(action_info(&json!({})), None);
    }
}
