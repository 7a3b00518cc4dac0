//! A libvirt host as a resource set: machines are made from an image's copy-on-write overlay, or with an empty disk that
//! boots from the network, and cease to exist with their disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::virsh::Virsh;
use super::xml::{self, About, New};
use super::{fine_name, state_of};
use crate::http::excerpt;
use crate::set::{Image, Kind, Resource, ResourceSet, Set, Source, Wish};
use crate::{Address, Error, Outcome, PowerDriver, Result, State, program};

pub(crate) const SET: Set = Set {
    scheme: "libvirt",
    help: "virtual machines of the libvirt on this host: folder=/path (needed to make machines: disks, and images in its images/) uri=URI \
           bridge=NAME or network=NAME prefix=WORD type=kvm|qemu firmware=bios|uefi bus=virtio|sata call_seconds=1..120 boot=network|kernel (how they get our kernel: by a network boot, or from libvirt)",
    example: "libvirt:?folder=/var/lib/rackswarm/libvirt&bridge=br0&type=kvm",
    limit: Duration::from_secs(1800),
    credentials: None,
    parse: |address| Ok(Box::new(Host::parse(address)?)),
};

/// Definitions read at the same time; each is a process.
const AT_ONCE: usize = 4;
/// Copying an image takes as long as the disk is slow.
const COPY_LIMIT: Duration = Duration::from_secs(1700);

struct Host {
    virsh: Virsh,
    folder: Option<PathBuf>,
    link: Option<(&'static str, String)>,
    prefix: String,
    kind: &'static str,
    uefi: bool,
    bus: &'static str,
    hands_kernel: bool,
}

impl Host {
    fn parse(address: &mut Address) -> Result<Host> {
        if !address.place().is_empty() {
            return Err(address.wrong("a set is the whole host; leave the machine's name away"));
        }
        let link = match (address.take("bridge"), address.take("network")) {
            (Some(_), Some(_)) => return Err(address.wrong("`bridge=` and `network=` exclude each other")),
            (Some(name), None) => Some(("bridge", name)),
            (None, Some(name)) => Some(("network", name)),
            (None, None) => None,
        };
        let prefix = address.take("prefix").unwrap_or_else(|| "rs".to_owned());
        if !fine_name(&prefix) {
            return Err(address.wrong(format!("`prefix={prefix}` is no beginning of a name")));
        }
        let virsh = Virsh::take(address)?;
        Ok(Host {
            hands_kernel: super::hands_kernel(address, &virsh)?,
            virsh,
            folder: address.file("folder")?,
            link,
            prefix,
            kind: address.word("type", &[("kvm", "kvm"), ("qemu", "qemu")])?.unwrap_or("kvm"),
            uefi: address.word("firmware", &[("bios", false), ("uefi", true)])?.unwrap_or(false),
            bus: address.word("bus", &[("virtio", "virtio"), ("sata", "sata")])?.unwrap_or("virtio"),
        })
    }

    fn target(&self) -> String {
        format!("libvirt host {}", self.virsh.uri)
    }

    /// The folder for disks, which must be on the host itself.
    fn folder(&self) -> Result<&Path> {
        if !self.virsh.is_local() {
            return Err(Error::refused(
                &self.target(),
                "machines are made on the host that this server runs on only, for their disks are files; make them there, or run a server there",
            ));
        }
        self.folder.as_deref().ok_or_else(|| {
            Error::refused(
                &self.target(),
                "`folder=` is missing in the set's address: where the machines' disks shall be",
            )
        })
    }

    fn power_address(&self, name: &str) -> String {
        let boot = if self.hands_kernel { "&boot=kernel" } else { "" };
        format!("libvirt:{name}?uri={}{boot}", self.virsh.uri)
    }

    async fn names(&self) -> Result<Vec<String>> {
        let text = self.virsh.run(&["list", "--all", "--name"]).await?;
        Ok(text.lines().map(str::trim).filter(|name| fine_name(name)).map(str::to_owned).collect())
    }

    /// A machine as it is now; `None` when it is gone.
    async fn look(&self, name: &str) -> Result<Option<(About, State)>> {
        let xml = match self.virsh.run(&["dumpxml", "--inactive", name]).await {
            Ok(xml) => xml,
            // It may have been taken away between the list and now.
            Err(error) if !self.names().await?.iter().any(|other| other == name) => {
                tracing::debug!(%error, "a machine is gone");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let about = xml::about(&xml).map_err(|why| Error::refused(&self.target(), format!("machine {name}: {why}")))?;
        let state = self.virsh.run(&["domstate", name]).await.map_or(State::Unknown, |word| state_of(word.trim()));
        Ok(Some((about, state)))
    }

    fn resource(&self, about: About, state: State) -> Resource {
        Resource {
            power: self.power_address(&about.name),
            id: about.name.clone(),
            name: about.name,
            kind: Kind::Virtual,
            state,
            macs: about.macs,
            uuid: Some(about.uuid),
            held_by: about.token,
            about: format!("libvirt {}", self.virsh.uri),
            ..Resource::default()
        }
    }

    async fn all(&self) -> Result<Vec<Resource>> {
        let looks: Vec<_> = self.names().await?.into_iter().map(|name| async move { self.look(&name).await }).collect();
        let found: Vec<_> = futures_util::stream::iter(looks).buffered(AT_ONCE).collect().await;
        let mut all = Vec::new();
        for one in found {
            if let Some((about, state)) = one? {
                all.push(self.resource(about, state));
            }
        }
        Ok(all)
    }

    /// The machines of a token have fixed names, so whoever asks again finds them, whatever became of the first asking.
    async fn take(&self, wish: &Wish) -> Result<Vec<Resource>> {
        let folder = self.folder()?;
        std::fs::create_dir_all(folder)
            .map_err(|error| Error::refused(&self.target(), format!("the folder {}: {error}", folder.display())))?;
        let image = match &wish.image {
            Some(id) => Some(self.image_file(id)?),
            None => None,
        };
        let mut mine = Vec::new();
        for index in 1..=wish.count {
            let name = format!("{}-{}-{index}", self.prefix, wish.token);
            let found = if self.names().await?.contains(&name) { self.look(&name).await? } else { None };
            let (about, state) = match found {
                Some((about, state)) if about.token.as_deref() == Some(&wish.token) => (about, state),
                Some(_) => {
                    return Err(Error::refused(
                        &self.target(),
                        format!(
                            "a machine called {name} is there already and not ours; choose another token or `prefix=`"
                        ),
                    ));
                }
                None => self.make(&name, wish, image.as_deref(), folder).await?,
            };
            mine.push(self.resource(about, state));
        }
        Ok(mine)
    }

    async fn make(&self, name: &str, wish: &Wish, image: Option<&Path>, folder: &Path) -> Result<(About, State)> {
        let disk = folder.join(format!("{name}.qcow2"));
        self.make_disk(&disk, wish, image).await?;
        let disk = disk.display().to_string();
        let definition = xml::definition(&New {
            kind: self.kind,
            name,
            cpus: wish.cpus,
            memory_mib: wish.memory_mib,
            uefi: self.uefi,
            disk: &disk,
            bus: self.bus,
            link: self.link.as_ref().map(|(how, name)| (*how, name.as_str())),
            mac: &mac_of(&self.virsh.uri, name),
            token: &wish.token,
        });
        self.virsh.feed(&["define", "/dev/stdin"], &definition).await?;
        self.look(name).await?.ok_or_else(|| {
            Error::transient(&self.target(), format!("it accepted the machine {name}, but does not list it"))
        })
    }

    /// An overlay of the image, or an empty disk. A file that is there already belongs to no machine: an earlier asking
    /// broke off before its definition.
    async fn make_disk(&self, disk: &Path, wish: &Wish, image: Option<&Path>) -> Result<()> {
        match std::fs::remove_file(disk) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::refused(&self.target(), format!("the disk {}: {error}", disk.display())));
            }
            _ => {}
        }
        let mut bytes = u64::from(wish.disk_gib) << 30;
        let mut words: Vec<String> = ["create", "-q", "-f", "qcow2"].map(str::to_owned).into();
        if let Some(image) = image {
            let (format, size) = self.image_shape(image).await?;
            bytes = bytes.max(size);
            words.extend(["-b".into(), image.display().to_string(), "-F".into(), format]);
        }
        words.extend([disk.display().to_string(), bytes.to_string()]);
        self.qemu_img(&words).await.map(drop)
    }

    /// Format and virtual size of an image file.
    async fn image_shape(&self, file: &Path) -> Result<(String, u64)> {
        let text = self.qemu_img(&["info".into(), "--output=json".into(), file.display().to_string()]).await?;
        let about: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        match (about["format"].as_str(), about["virtual-size"].as_u64()) {
            (Some(format), Some(size)) => Ok((format.to_owned(), size)),
            _ => Err(Error::refused(&self.target(), format!("qemu-img tells nothing of {}", file.display()))),
        }
    }

    async fn qemu_img(&self, words: &[String]) -> Result<String> {
        let mut command = Command::new("qemu-img");
        command.args(words);
        match program::run(command, "qemu-utils", &self.target(), "", COPY_LIMIT).await? {
            Some(ended) if ended.well => Ok(ended.said),
            Some(ended) => {
                Err(Error::transient(&self.target(), format!("qemu-img says: {}", excerpt(&ended.complaint))))
            }
            None => Err(Error::transient(
                &self.target(),
                format!(
                    "qemu-img did not end within {} s; is the disk slow or the network storage away?",
                    COPY_LIMIT.as_secs()
                ),
            )),
        }
    }

    async fn give_back(&self, id: &str) -> Result<Outcome> {
        let folder = self.folder()?;
        if !self.names().await?.iter().any(|name| name == id) {
            return Ok(Outcome::Done);
        }
        let Some((about, _)) = self.look(id).await? else { return Ok(Outcome::Done) };
        if about.token.is_none() {
            return Err(Error::refused(
                &self.target(),
                format!("the machine {id} was not made by us, so it is not destroyed; `virsh undefine` does that"),
            ));
        }
        self.power(id)?.off().await?;
        self.virsh.run(&["undefine", "--nvram", "--managed-save", id]).await?;
        if self.names().await?.iter().any(|name| name == id) {
            return Err(Error::transient(
                &self.target(),
                format!("`virsh undefine` went well, but {id} is still listed"),
            ));
        }
        if let Some(disk) = about.disk.map(PathBuf::from).filter(|disk| disk.starts_with(folder)) {
            match std::fs::remove_file(&disk) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::refused(&self.target(), format!("the disk {} stays: {error}", disk.display())));
                }
                _ => {}
            }
        }
        Ok(Outcome::Done)
    }

    fn images_folder(&self) -> Result<PathBuf> {
        Ok(self.folder()?.join("images"))
    }

    fn image_file(&self, id: &str) -> Result<PathBuf> {
        let file = self.images_folder()?.join(format!("{id}.qcow2"));
        if !fine_name(id) || !file.is_file() {
            let known = self.shelf()?.into_iter().map(|image| image.id).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none yet".to_owned() } else { known };
            return Err(Error::refused(&self.target(), format!("it has no image `{id}`; there are: {known}")));
        }
        Ok(file)
    }

    fn shelf(&self) -> Result<Vec<Image>> {
        let Ok(files) = std::fs::read_dir(self.images_folder()?) else { return Ok(Vec::new()) };
        let mut all: Vec<Image> = files
            .filter_map(|file| Some(file.ok()?.file_name().to_str()?.strip_suffix(".qcow2")?.to_owned()))
            .map(|id| Image { name: id.clone(), id, ready: true })
            .collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// Copies a disk into the images, under another name until it is whole.
    async fn shelve(&self, name: &str, source: &Source) -> Result<Image> {
        if !fine_name(name) {
            return Err(Error::refused(&self.target(), format!("`{name}` is no name for an image")));
        }
        let image = Image { id: name.to_owned(), name: name.to_owned(), ready: true };
        let folder = self.images_folder()?;
        let file = folder.join(format!("{name}.qcow2"));
        if file.is_file() {
            return Ok(image);
        }
        let from = match source {
            Source::Place(path) if Path::new(path).is_absolute() => PathBuf::from(path),
            Source::Place(path) => {
                return Err(Error::refused(&self.target(), format!("`{path}` is not an absolute path")));
            }
            Source::Machine(id) => self.disk_of(id).await?,
        };
        let trouble = |error: std::io::Error| Error::refused(&self.target(), format!("{}: {error}", folder.display()));
        std::fs::create_dir_all(&folder).map_err(trouble)?;
        let (format, _) = self.image_shape(&from).await?;
        let part = folder.join(format!("{name}.part"));
        let words = ["convert", "-q", "-f", &format, "-O", "qcow2"].map(str::to_owned);
        let places = [from.display().to_string(), part.display().to_string()];
        self.qemu_img(&[&words[..], &places[..]].concat()).await?;
        std::fs::rename(&part, &file).map_err(trouble)?;
        Ok(image)
    }

    async fn disk_of(&self, id: &str) -> Result<PathBuf> {
        match self.look(id).await? {
            Some((_, state)) if state != State::Off => Err(Error::refused(
                &self.target(),
                format!("the machine {id} is {state}; switch it off first, for a disk that changes is no image"),
            )),
            Some((About { disk: Some(disk), .. }, _)) => Ok(PathBuf::from(disk)),
            Some(_) => Err(Error::refused(
                &self.target(),
                format!("the machine {id} was not made by us; give the path of its disk instead"),
            )),
            None => Err(Error::refused(&self.target(), format!("it has no machine {id}"))),
        }
    }
}

/// A card's address that is the same whenever the machine of that name is made again.
fn mac_of(uri: &str, name: &str) -> String {
    let hash = Sha256::digest(format!("{uri} {name}"));
    format!("52:54:00:{:02x}:{:02x}:{:02x}", hash[0], hash[1], hash[2])
}

impl ResourceSet for Host {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Resource>>> {
        Box::pin(self.all())
    }

    fn acquire<'a>(&'a self, wish: &'a Wish) -> BoxFuture<'a, Result<Vec<Resource>>> {
        Box::pin(self.take(wish))
    }

    fn release<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(self.give_back(id))
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<Image>>> {
        Box::pin(async { self.shelf() })
    }

    fn add_image<'a>(&'a self, name: &'a str, source: &'a Source) -> BoxFuture<'a, Result<Image>> {
        Box::pin(self.shelve(name, source))
    }

    fn power(&self, id: &str) -> Result<Box<dyn PowerDriver>> {
        if !fine_name(id) {
            return Err(Error::refused(&self.target(), format!("`{id}` is no name of a machine")));
        }
        crate::open(&self.power_address(id))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::open_set;

    #[test]
    fn addresses_are_fixed_by_the_name() {
        assert_eq!(mac_of("qemu:///system", "rs-a-1"), mac_of("qemu:///system", "rs-a-1"));
        assert_ne!(mac_of("qemu:///system", "rs-a-1"), mac_of("qemu:///system", "rs-a-2"));
        assert!(mac_of("x", "y").starts_with("52:54:00:"));
    }

    #[tokio::test]
    async fn machines_are_not_made_elsewhere_or_nowhere() {
        let far = open_set("libvirt:?uri=qemu+ssh://host/system&folder=/x").unwrap();
        assert!(far.acquire(&Wish::default()).await.unwrap_err().to_string().contains("that this server runs on"));
        let nowhere = open_set("libvirt:?uri=test:///default").unwrap();
        assert!(nowhere.acquire(&Wish::default()).await.unwrap_err().to_string().contains("`folder=` is missing"));
        assert!(open_set("libvirt:?bridge=a&network=b").err().unwrap().to_string().contains("exclude"));
    }
}
