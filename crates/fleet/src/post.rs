//! Post actions: what makes a written image this node's own.

use serde::{Deserialize, Serialize};

/// How a deployed node gets its network address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Network {
    /// DHCP on the interface that it was provisioned through, matched by MAC.
    #[default]
    Dhcp,
    /// A fixed address on that interface.
    Static {
        /// Address with prefix length, such as `10.0.0.7/24`.
        address: String,
        /// Default gateway.
        gateway: Option<String>,
        /// Name servers.
        #[serde(default)]
        dns: Vec<String>,
    },
    /// Whatever the image holds is left as it is.
    Keep,
}

/// An operator's own script, run in the written system before it reboots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// The text; its first line names the interpreter.
    pub text: String,
    /// Time limit in seconds, 1 to 3600.
    #[serde(default = "Script::default_limit")]
    pub time_limit_seconds: u32,
}

impl Script {
    fn default_limit() -> u32 {
        300
    }
}

/// Post actions as an operator sets them for all nodes, a rack or one node.
/// A field that is not set is inherited from the next wider setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PostSettings {
    /// Lines for root's `authorized_keys`. Narrower settings replace wider ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorized_keys: Option<Vec<String>>,
    /// Network configuration of the deployed system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// A cloud-init NoCloud seed is written with this user-data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// Grow the last partition and its file system to the disk. Default: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grow_root: Option<bool>,
    /// A script of the operator's own, run last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<Script>,
    /// Start the deployed kernel from ours, which skips firmware and loader. Default: no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kexec: Option<bool>,
}

impl PostSettings {
    /// These settings, with what they leave open taken from `wider`.
    #[must_use]
    pub fn over(&self, wider: &Self) -> Self {
        let mine = self.clone();
        let wider = wider.clone();
        Self {
            authorized_keys: mine.authorized_keys.or(wider.authorized_keys),
            network: mine.network.or(wider.network),
            user_data: mine.user_data.or(wider.user_data),
            grow_root: mine.grow_root.or(wider.grow_root),
            script: mine.script.or(wider.script),
            kexec: mine.kexec.or(wider.kexec),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_setting_wins_field_by_field() {
        let all = PostSettings { grow_root: Some(true), user_data: Some("all".into()), ..PostSettings::default() };
        let rack = PostSettings { user_data: Some("rack".into()), ..PostSettings::default() };
        let node = PostSettings { grow_root: Some(false), ..PostSettings::default() };
        let merged = node.over(&rack.over(&all));
        assert_eq!(merged.grow_root, Some(false));
        assert_eq!(merged.user_data.as_deref(), Some("rack"));
        assert_eq!(merged.network, None);
    }
}
