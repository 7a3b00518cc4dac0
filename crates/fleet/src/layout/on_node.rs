//! Layouts that each node builds for itself: which those are, which of its disks they take, and what its system is told of it.

use super::check::Wrong;
use super::{Extent, Kind, LaidDisk, Layout, Mount, Role, Table};
use crate::disk::{Disk, DiskRule, Purpose, Refusal, choose};

/// By which firmware a layout can be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Firmware {
    /// By BIOS.
    pub bios: bool,
    /// By UEFI.
    pub uefi: bool,
}

impl Layout {
    /// By which firmware machines may start it.
    #[must_use]
    pub fn firmware(&self) -> Firmware {
        let has = |role: Role| self.disks.iter().any(|disk| disk.has(role));
        Firmware { bios: self.table == Table::Mbr || has(Role::BiosBoot), uefi: has(Role::Esp) }
    }

    /// Whether each node has to build it for itself: what it is made of has identities and keys of one machine, or several
    /// disks. Otherwise one disk image serves all nodes.
    #[must_use]
    pub fn is_built_by_nodes(&self) -> bool {
        !self.arrays.is_empty() || !self.groups.is_empty() || !self.locked.is_empty() || self.disks.len() > 1
    }

    /// Whether nodes can build it and start a tree of files from it without anybody typing a key.
    ///
    /// # Errors
    /// [`Wrong`], a sentence with what to do.
    pub fn check_for_nodes(&self) -> Result<(), Wrong> {
        let firmware = self.firmware();
        if !firmware.bios && !firmware.uefi {
            return Err(Wrong("no machine would start this layout: give it a partition with role = \"esp\" for UEFI, partitions with role = \"bios_boot\" for BIOS, or both".to_owned()));
        }
        for (uefi, starts) in [(true, firmware.uefi), (false, firmware.bios)] {
            if starts {
                self.check(uefi)?;
            }
        }
        let root = self.mounts.iter().find(|mount| mount.at.as_deref() == Some("/"));
        if root.is_some_and(|root| self.is_locked(&root.on)) {
            return Err(Wrong("the root file system would be encrypted, and its key would have to lie beside it in the clear: leave root plain, and encrypt the file systems with the data".to_owned()));
        }
        for locked in &self.locked {
            // Only what is mounted without a key can hold one.
            let holder = self.mount_of(&locked.key_file);
            if holder.is_some_and(|mount| self.is_locked(&mount.on)) {
                return Err(Wrong(format!(
                    "the key {} of `{}` would lie in a file system that is encrypted itself: put it below /etc",
                    locked.key_file, locked.name
                )));
            }
        }
        Ok(())
    }

    /// The file system that a path of the deployed system lies in.
    fn mount_of(&self, path: &str) -> Option<&Mount> {
        let covers = |at: &str| at == "/" || path.strip_prefix(at).is_some_and(|rest| rest.starts_with('/'));
        let covering = self.mounts.iter().filter(|mount| mount.at.as_deref().is_some_and(covers));
        covering.max_by_key(|mount| mount.at.as_ref().map_or(0, String::len))
    }

    /// A node's disk for each of the layout's, in the layout's order. The disk without a rule is the one that `rule`, the
    /// node's own, leads to among those that no other takes. What the node's rule allows is allowed for all of them.
    ///
    /// # Errors
    /// [`Refusal`] where the interlock refuses one of them, or two are the same.
    pub fn choose_disks<'a>(
        &self,
        disks: &'a [Disk],
        rule: &DiskRule,
        own: Option<&str>,
    ) -> Result<Vec<&'a Disk>, Refusal> {
        let mut chosen: Vec<Option<&Disk>> = vec![None; self.disks.len()];
        for has_rule in [true, false] {
            for (index, laid) in self.disks.iter().enumerate().filter(|(_, laid)| laid.rule.is_some() == has_rule) {
                let purpose = Purpose::Write { image_bytes: laid.least_bytes(), own };
                let disk = match &laid.rule {
                    Some(own_rule) => {
                        let allow = own_rule.allow.iter().chain(&rule.allow).copied().collect();
                        choose(disks, &DiskRule { allow, ..own_rule.clone() }, purpose)?
                    }
                    None => {
                        let is_free = |disk: &&Disk| !chosen.iter().flatten().any(|taken| taken.path == disk.path);
                        let free: Vec<Disk> = disks.iter().filter(is_free).cloned().collect();
                        let path = choose(&free, rule, purpose)?.path.clone();
                        disks.iter().find(|disk| disk.path == path).ok_or(Refusal::NoDisk { seen: path })?
                    }
                };
                let twin = chosen.iter().position(|taken| taken.is_some_and(|taken| taken.path == disk.path));
                if let Some(first) = twin.and_then(|twin| self.disks.get(twin)) {
                    let (first, second) = (first.name.clone(), laid.name.clone());
                    return Err(Refusal::Twice { disk: disk.to_string(), first, second });
                }
                if let Some(place) = chosen.get_mut(index) {
                    *place = Some(disk);
                }
            }
        }
        Ok(chosen.into_iter().flatten().collect())
    }

    /// A file system table (fstab(5)) of the layout's file systems, then what the `old` one has of others: memory, network,
    /// files. `identity` gives the UUID of each.
    #[must_use]
    pub fn table_of_mounts(&self, identity: &dyn Fn(&Mount) -> String, old: &str) -> String {
        let mut mounts: Vec<&Mount> = self.mounts.iter().collect();
        mounts.sort_by_key(|mount| mount.at.as_deref().map_or(usize::MAX, |at| at.trim_end_matches('/').len()));
        let line = |mount: &Mount| {
            let (usual, pass) = match (mount.kind, mount.at.as_deref()) {
                (Kind::Ext4, Some("/")) => ("defaults,errors=remount-ro", 1),
                (Kind::Ext4, _) => ("defaults", 2),
                (Kind::Xfs, _) => ("defaults", 0),
                (Kind::Vfat, _) => ("umask=0077", 0),
                (Kind::Swap, _) => ("sw", 0),
            };
            let options = mount.options.as_deref().unwrap_or(usual);
            let (id, at) = (identity(mount), mount.at.as_deref().unwrap_or("none"));
            format!("UUID={id} {at} {} {options} 0 {pass}\n", mount.kind.as_str())
        };
        let is_ours = |at: &str| self.mounts.iter().any(|mount| mount.at.as_deref() == Some(at));
        let is_other = |line: &&str| {
            let mut words = line.split_whitespace();
            let (source, at) = (words.next().unwrap_or("#"), words.next().unwrap_or_default());
            let local = ["#", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "/dev/"];
            !local.iter().any(|start| source.starts_with(start)) && !is_ours(at)
        };
        let others = old.lines().filter(is_other).map(|line| format!("{line}\n"));
        mounts.into_iter().map(line).chain(others).collect()
    }
}

impl LaidDisk {
    /// Whether one of its partitions is that to firmware.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.partitions.iter().any(|part| part.role == role)
    }

    /// What its partitions of fixed size and the table take, in bytes.
    fn least_bytes(&self) -> u64 {
        let fixed = self.partitions.iter().map(|part| match part.size {
            Extent::Bytes(bytes) => bytes,
            Extent::Rest => super::ALIGNMENT_BYTES,
        });
        fixed.sum::<u64>() + super::plan::TABLE_BYTES
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::disk::Signature;

    const MIRROR: &str = r#"
        [[disk]]
        name = "a"
        partition = [{ name = "bios", size = "1MiB", role = "bios_boot" }, { name = "raid", size = "1GiB" }]
        [[disk]]
        name = "b"
        rule = { path = "/dev/vdb" }
        partition = [{ name = "bios", size = "1MiB", role = "bios_boot" }, { name = "raid", size = "rest" }]
        [[raid]]
        name = "mirror"
        level = 1
        members = ["a.raid", "b.raid"]
        [[group]]
        name = "vg"
        members = ["mirror"]
        volume = [{ name = "root", size = "512MiB" }, { name = "data", size = "rest" }]
        [[luks]]
        name = "secret"
        on = "SPARE"
        key_file = "/etc/keys/secret"
        [[mount]]
        on = "vg/root"
        kind = "ext4"
        at = "/"
        [[mount]]
        on = "secret"
        kind = "ext4"
        at = "/srv"
        "#;

    fn layout(change: impl Fn(&str) -> String) -> Layout {
        let spare = "{ name = \"raid\", size = \"1GiB\" }, { name = \"spare\", size = \"64MiB\" }]";
        let text = MIRROR.replacen("{ name = \"raid\", size = \"1GiB\" }]", spare, 1).replace("SPARE", "a.spare");
        toml::from_str(&change(&text)).unwrap()
    }

    fn disk(path: &str, gib: u64) -> Disk {
        Disk { path: path.into(), serial: Some(path.into()), size_bytes: gib << 30, ..Disk::default() }
    }

    #[test]
    fn who_builds_a_layout_and_by_what_it_starts() {
        let mirror = layout(str::to_owned);
        assert!(mirror.is_built_by_nodes() && mirror.check_for_nodes().is_ok());
        assert_eq!(mirror.firmware(), Firmware { bios: true, uefi: false });
        let nobody = layout(|text| text.replace(", role = \"bios_boot\"", ""));
        assert!(nobody.check_for_nodes().unwrap_err().to_string().contains("no machine would start"));
        let one = r#"
            [[disk]]
            name = "a"
            partition = [{ name = "bios", size = "1MiB", role = "bios_boot" }, { name = "root", size = "rest" }]
            [[mount]]
            on = "a.root"
            kind = "ext4"
            at = "/"
            "#;
        assert!(!toml::from_str::<Layout>(one).unwrap().is_built_by_nodes());
    }

    #[test]
    fn keys_must_lie_where_no_key_is_needed() {
        let behind = layout(|text| text.replace("/etc/keys/secret", "/srv/keys/secret"));
        assert!(behind.check_for_nodes().unwrap_err().to_string().contains("put it below /etc"));
        let beside = layout(|text| text.replace("/etc/keys/secret", "/srvkeys/secret"));
        assert!(beside.check_for_nodes().is_ok());
        let root = layout(|text| {
            let text = text.replace("at = \"/srv\"", "at = \"/x\"").replace("at = \"/\"\n", "at = \"/boot\"\n");
            text.replace("at = \"/x\"", "at = \"/\"")
        });
        assert!(root.check_for_nodes().unwrap_err().to_string().contains("leave root plain"));
    }

    #[test]
    fn every_disk_of_a_layout_passes_the_interlock() {
        let mirror = layout(str::to_owned);
        let pick = |disks: &[Disk], rule: &DiskRule, own: Option<&str>| {
            let chosen = mirror.choose_disks(disks, rule, own);
            chosen.map(|disks| disks.iter().map(|disk| disk.path.clone()).collect::<Vec<_>>())
        };
        let any = DiskRule::default();
        let two = [disk("/dev/vda", 4), disk("/dev/vdb", 4)];
        assert_eq!(pick(&two, &any, None).unwrap(), ["/dev/vda", "/dev/vdb"]);
        let three = [disk("/dev/vda", 4), disk("/dev/vdb", 4), disk("/dev/vdc", 4)];
        assert!(matches!(pick(&three, &any, None), Err(Refusal::Ambiguous { count: 2, .. })));
        let third = DiskRule { path: Some("/dev/vdc".into()), ..DiskRule::default() };
        assert_eq!(pick(&three, &third, None).unwrap(), ["/dev/vdc", "/dev/vdb"]);
        let small = [disk("/dev/vda", 1), disk("/dev/vdb", 4)];
        assert!(matches!(pick(&small, &any, None), Err(Refusal::TooSmall { .. })));
        assert!(matches!(pick(&two[..1], &any, None), Err(Refusal::NoMatch { .. })));

        let marked = |disk: Disk| Disk {
            signatures: vec![Signature { device: disk.path.clone(), kind: "linux_raid_member".into(), label: None }],
            ..disk
        };
        let old = two.clone().map(marked);
        assert!(matches!(pick(&old, &any, None), Err(Refusal::Signatures { .. })));
        assert!(matches!(pick(&old, &any, Some("serial:/dev/vda")), Err(Refusal::Signatures { .. })));
        assert!(pick(&old, &any, Some("serial:/dev/vda + serial:/dev/vdb")).is_ok(), "they are our own");
        let allowed = DiskRule { allow: vec![crate::disk::Allow::Signatures], ..DiskRule::default() };
        assert!(pick(&old, &allowed, None).is_ok());

        let same = layout(|text| text.replacen("name = \"a\"", "name = \"a\"\nrule = { path = \"/dev/vdb\" }", 1));
        let refusal = same.choose_disks(&two, &any, None).unwrap_err().to_string();
        assert!(refusal.contains("both `a` and `b`"), "{refusal}");
    }
}
