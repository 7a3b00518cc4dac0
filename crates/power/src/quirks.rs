//! Where management controllers differ from the Redfish specification (DSP0266): one row per oddity, each with its source.
//!
//! The driver follows the specification, reads back every change, and looks up here what to do differently. A row is
//! data: what to look for in the service root or the system, and one [`Effect`]. Whoever finds a new oddity adds a row.

use serde_json::Value;

/// What a controller says about itself, lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// `Vendor` of the service root, or the first word under its `Oem`.
    pub vendor: String,
    /// `Product` or `Name` of the service root.
    pub product: String,
    /// `Manufacturer` of the system.
    pub manufacturer: String,
    /// `Model` of the system.
    pub model: String,
}

/// Where a row looks, and for which part of the text.
#[derive(Debug, Clone, Copy)]
pub enum Sign {
    /// In [`Facts::vendor`] or [`Facts::manufacturer`].
    Vendor(&'static str),
    /// In [`Facts::product`].
    Product(&'static str),
    /// In [`Facts::model`].
    Model(&'static str),
}

/// What the driver does differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// `BootSourceOverrideMode` is sent with every override, as it was read, because the controller resets it otherwise.
    RepeatBootMode,
    /// A one-time override is stored as a lasting one, and the machine reads the order when it gets power: the driver
    /// accepts that and puts the standing order back once the machine is on. For virtual controllers only; firmware of
    /// real machines reads the override later.
    OnceBecomesContinuous,
    /// The password goes with every request, because sessions are missing or broken.
    BasicOnly,
}

/// One oddity.
#[derive(Debug, Clone, Copy)]
pub struct Quirk {
    /// How it is recognised.
    pub sign: Sign,
    /// What follows.
    pub effect: Effect,
    /// How we know.
    pub source: &'static str,
}

/// All oddities that belong to a make.
pub const QUIRKS: &[Quirk] = &[
    Quirk {
        sign: Sign::Vendor("supermicro"),
        effect: Effect::RepeatBootMode,
        source: "https://github.com/DMTF/Redfishtool/pull/106: the mode falls back to its default unless it is sent along, by design of the vendor",
    },
    Quirk {
        sign: Sign::Product("redvirt service"),
        effect: Effect::OnceBecomesContinuous,
        source: "read back from sushy-tools 2.2.0 on libvirt (crates/power/tests/vm_libvirt.rs): `Once` is answered with 204 and stored as `Continuous`",
    },
    Quirk {
        sign: Sign::Product("redvirt service"),
        effect: Effect::BasicOnly,
        source: "sushy-tools 2.2.0 has no SessionService (crates/power/tests/vm_libvirt.rs)",
    },
];

/// What a message of a controller means, whatever the status beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// All sessions are taken.
    SessionsFull,
    /// It refuses for the moment; the same request may work later.
    Later,
    /// It wants `If-Match`.
    WantsEtag,
    /// The machine is in that power state already, or in between.
    StateConflict,
    /// The account may not do this.
    MayNot,
}

/// The last part of a `MessageId`, its meaning, and how we know.
pub const MESSAGES: &[(&str, Meaning, &str)] = &[
    ("RAC0218", Meaning::SessionsFull, "https://github.com/stmcginnis/gofish/issues/75 (iDRAC 9, status 503)"),
    ("SessionLimitExceeded", Meaning::SessionsFull, "Redfish Base message registry"),
    (
        "UnableToModifyDuringSystemPOST",
        Meaning::Later,
        "https://github.com/ironcore-dev/metal-operator/issues/997 (iLO, status 400)",
    ),
    ("ResourceInUse", Meaning::Later, "Redfish Base message registry"),
    ("ServiceTemporarilyUnavailable", Meaning::Later, "Redfish Base message registry"),
    ("ServiceInUnknownState", Meaning::Later, "Redfish Base message registry"),
    (
        "PreconditionHeaderMissing",
        Meaning::WantsEtag,
        "https://github.com/stmcginnis/gofish/issues/171 (AMI in ThinkSystem SR655)",
    ),
    ("PreconditionRequired", Meaning::WantsEtag, "Redfish Base message registry"),
    ("PreconditionFailed", Meaning::WantsEtag, "Redfish Base message registry"),
    (
        "InvalidOperationForSystemState",
        Meaning::StateConflict,
        "https://github.com/goldyfruit/ansible-ilo/issues/1 (iLO, status 400)",
    ),
    ("ResourceInStandby", Meaning::StateConflict, "Redfish Base message registry"),
    ("InsufficientPrivilege", Meaning::MayNot, "Redfish Base message registry"),
];

/// How `If-Match` is written at the first, second, ... try of a change, and why another form is tried at all.
pub const ETAG_FORMS: &[(EtagForm, &str)] = &[
    (EtagForm::AsGiven, "DSP0266, section ETags"),
    (EtagForm::AsGiven, "somebody else changed the resource in between; it was read anew"),
    (
        EtagForm::Strong,
        "https://github.com/ansible-collections/community.general/pull/6434 (Gigabyte compares without W/)",
    ),
    (
        EtagForm::FromBody,
        "https://github.com/ansible-collections/community.general/pull/3268 (the header was quoted twice)",
    ),
    (
        EtagForm::Absent,
        "https://github.com/ansible-collections/community.general/pull/3268 (412 although nothing had changed)",
    ),
];

/// A way to write `If-Match`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtagForm {
    /// The `ETag` header as it came, or the body's `@odata.etag` when there is none.
    AsGiven,
    /// Without the `W/` that marks a weak one.
    Strong,
    /// The body's `@odata.etag`.
    FromBody,
    /// No `If-Match` at all.
    Absent,
}

impl Facts {
    /// Reads what the service root says.
    pub fn of_root(root: &Value) -> Facts {
        let oem = root.get("Oem").and_then(Value::as_object).and_then(|oem| oem.keys().next().cloned());
        Facts {
            vendor: word(root, "Vendor").or(oem.map(|name| name.to_lowercase())).unwrap_or_default(),
            product: word(root, "Product").or_else(|| word(root, "Name")).unwrap_or_default(),
            ..Facts::default()
        }
    }

    /// Adds what the system says.
    pub fn with_system(mut self, system: &Value) -> Facts {
        self.manufacturer = word(system, "Manufacturer").unwrap_or_default();
        self.model = word(system, "Model").unwrap_or_default();
        self
    }

    /// Whether a row with this effect applies.
    pub fn has(&self, effect: Effect) -> bool {
        QUIRKS.iter().any(|quirk| quirk.effect == effect && self.shows(quirk.sign))
    }

    fn shows(&self, sign: Sign) -> bool {
        match sign {
            Sign::Vendor(part) => self.vendor.contains(part) || self.manufacturer.contains(part),
            Sign::Product(part) => self.product.contains(part),
            Sign::Model(part) => self.model.contains(part),
        }
    }
}

fn word(value: &Value, name: &str) -> Option<String> {
    value.get(name).and_then(Value::as_str).map(str::to_lowercase)
}

/// The meaning of a `MessageId` such as `IDRAC.2.1.RAC0218`.
pub fn meaning(message_id: &str) -> Option<Meaning> {
    let last = message_id.rsplit('.').next()?;
    MESSAGES.iter().find(|(name, ..)| *name == last).map(|(_, meaning, _)| *meaning)
}

/// `If-Match` in the given form, from the `ETag` header and the body's `@odata.etag`.
pub fn if_match(form: EtagForm, header: Option<&str>, body: Option<&str>) -> Option<String> {
    let given = header.or(body)?;
    match form {
        EtagForm::AsGiven => Some(given.to_owned()),
        EtagForm::Strong => Some(given.strip_prefix("W/").unwrap_or(given).to_owned()),
        EtagForm::FromBody => Some(body.unwrap_or(given).to_owned()),
        EtagForm::Absent => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_row_has_a_source_and_a_lower_case_sign() {
        for quirk in QUIRKS {
            let (Sign::Vendor(part) | Sign::Product(part) | Sign::Model(part)) = quirk.sign;
            assert_eq!(part, part.to_lowercase());
            assert!(!quirk.source.is_empty(), "{part}");
        }
        assert!(MESSAGES.iter().all(|(_, _, source)| !source.is_empty()));
        assert!(ETAG_FORMS.iter().all(|(_, source)| !source.is_empty()));
    }

    #[test]
    fn makes_are_recognised_by_root_and_by_system() {
        let dell = Facts::of_root(&json!({"Vendor": "Dell", "Product": "Integrated Dell Remote Access Controller"}));
        assert!(QUIRKS.iter().all(|quirk| !dell.has(quirk.effect)));
        let bare = Facts::of_root(&json!({"Oem": {"Supermicro": {}}}));
        assert!(bare.has(Effect::RepeatBootMode));
        let system = Facts::of_root(&json!({})).with_system(&json!({"Manufacturer": "Supermicro", "Model": null}));
        assert!(system.has(Effect::RepeatBootMode) && !system.has(Effect::BasicOnly));
        let sushy = Facts::of_root(&json!({"Name": "Redvirt Service"}));
        assert!(sushy.has(Effect::OnceBecomesContinuous) && sushy.has(Effect::BasicOnly));
    }

    #[test]
    fn messages_are_known_by_their_last_part() {
        assert_eq!(meaning("IDRAC.2.1.RAC0218"), Some(Meaning::SessionsFull));
        assert_eq!(meaning("iLO.2.37.UnableToModifyDuringSystemPOST"), Some(Meaning::Later));
        assert_eq!(meaning("Base.1.8.Success"), None);
    }

    #[test]
    fn an_etag_is_written_in_every_form() {
        let (header, body) = (Some("W/\"1\""), Some("\"1\""));
        assert_eq!(if_match(EtagForm::AsGiven, header, body).as_deref(), Some("W/\"1\""));
        assert_eq!(if_match(EtagForm::Strong, header, body).as_deref(), Some("\"1\""));
        assert_eq!(if_match(EtagForm::FromBody, header, body).as_deref(), Some("\"1\""));
        assert_eq!(if_match(EtagForm::Absent, header, body), None);
        assert_eq!(if_match(EtagForm::AsGiven, None, None), None);
    }
}
