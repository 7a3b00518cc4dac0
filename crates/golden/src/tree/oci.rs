//! The layers of a container image: an OCI layout, or what `docker save` and `podman save` write. Nothing is believed
//! that its digest does not bear out.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use oci_spec::image::{
    Arch, Descriptor, Digest as Name, DigestAlgorithm, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256, Sha512};

use super::inside::Inside;
use super::packed;
use super::unpack::Unpacker;
use crate::error::{Error, file};

/// The most that an index, a manifest or a configuration may have (OCI distribution specification 1.1 asks for 4 MiB).
const DOCUMENT_BYTES: u64 = 4 << 20;
/// Indexes that name indexes; two occur.
const MOST_INDEXES: u32 = 4;
/// More layers than any tool makes; overlayfs ends at 500.
const MOST_LAYERS: usize = 1000;
/// Who says what an image is called: the OCI image specification, and containerd, which docker uses.
const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];

/// Operating system and processor, as container tools name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: Os,
    architecture: Arch,
    variant: Option<String>,
}

impl Platform {
    /// This machine's.
    #[must_use]
    pub fn own() -> Self {
        Platform { os: Os::Linux, architecture: Arch::default(), variant: None }
    }
}

impl std::str::FromStr for Platform {
    type Err = String;
    /// Takes `linux/amd64` and `linux/arm64/v8`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/');
        let wrong = || format!("`{text}` is not a platform: write it like linux/amd64");
        let (Some(os), Some(architecture)) = (parts.next(), parts.next()) else { return Err(wrong()) };
        let variant = parts.next().map(str::to_owned);
        if parts.next().is_some() || os.is_empty() || architecture.is_empty() {
            return Err(wrong());
        }
        Ok(Platform { os: Os::from(os), architecture: Arch::from(architecture), variant })
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// A container image in a folder.
#[derive(Debug)]
pub(crate) struct Container {
    folder: Inside,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    path: PathBuf,
    /// Digest and size of the file as it lies there; `docker save` of old gives none.
    packed: Option<(Name, u64)>,
    /// Digest of its content, unpacked.
    content: Name,
}

/// Whether a folder holds a container image.
pub(crate) fn is_container(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    (has("oci-layout") && has("index.json")) || (has("manifest.json") && !folder.join("etc").exists())
}

impl Container {
    /// Finds the image for a platform, and of this name where there are several.
    pub(crate) fn open(folder: &Path, platform: &Platform, tag: Option<&str>) -> Result<Self, Error> {
        let folder = Inside::at(folder)?;
        let layers = if folder.has_file("oci-layout") {
            let index: ImageIndex = parse("index.json", &document(&folder, Path::new("index.json"))?)?;
            let manifest = choose(&folder, &index, platform, tag, 0)?;
            of_manifest(&folder, &manifest, platform)?
        } else {
            of_saved(&folder, platform, tag)?
        };
        if layers.is_empty() || layers.len() > MOST_LAYERS {
            return Err(refuse(format!("{} layers are none of a system", layers.len())));
        }
        Ok(Container { folder, layers })
    }

    /// Reads every file before anything is made of one.
    pub(crate) fn verify(&self) -> Result<(), Error> {
        for layer in &self.layers {
            let mut file = self.folder.read_file(&layer.path)?;
            if let Some((digest, size_bytes)) = &layer.packed {
                check(&mut file, &layer.path, digest, *size_bytes)?;
            }
        }
        Ok(())
    }

    /// Puts the layers over each other.
    pub(crate) fn unpack(&self, unpacker: &mut Unpacker, progress: &dyn Fn(&str)) -> Result<(), Error> {
        for (number, layer) in (1..).zip(&self.layers) {
            progress(&format!("unpack layer {number} of {}", self.layers.len()));
            let file = self.folder.read_file(&layer.path)?;
            let content = packed::read(file, &layer.path)?;
            let mut hashed = Hashed { inner: content, hash: Hash::of(&layer.content, &layer.path)? };
            let unpacked = unpacker.unpack(&mut hashed, &layer.path, true);
            // What is not the layer's content may fail in any way; that it is not is what must be known.
            io::copy(&mut hashed, &mut io::sink()).map_err(crate::error::file("read", &layer.path))?;
            compare(&layer.path, &layer.content, &hashed.hash.finish())?;
            unpacked?;
        }
        Ok(())
    }
}

fn refuse(why: impl Into<String>) -> Error {
    Error::Tree(why.into())
}

fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| refuse(format!("{what} cannot be understood: {error}")))
}

fn document(folder: &Inside, path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let source = folder.read_file(path)?;
    source.take(DOCUMENT_BYTES + 1).read_to_end(&mut bytes).map_err(file("read", path))?;
    match bytes.len() as u64 > DOCUMENT_BYTES {
        true => Err(refuse(format!("{} has more than {} MiB", path.display(), DOCUMENT_BYTES >> 20))),
        false => Ok(bytes),
    }
}

/// Where a blob lies. The digest's type admits only hexadecimal digits.
fn path_of(digest: &Name) -> PathBuf {
    Path::new("blobs").join(digest.algorithm().as_ref()).join(digest.digest())
}

/// A document that a descriptor names, with its digest verified.
fn blob(folder: &Inside, named: &Descriptor) -> Result<Vec<u8>, Error> {
    let path = path_of(named.digest());
    let mut source = folder.read_file(&path)?;
    check(&mut source, &path, named.digest(), named.size())?;
    document(folder, &path)
}

/// Descends to the one manifest that fits. Manifests without a platform fit until their configuration is known.
fn choose(
    folder: &Inside,
    index: &ImageIndex,
    platform: &Platform,
    tag: Option<&str>,
    depth: u32,
) -> Result<ImageManifest, Error> {
    if depth == MOST_INDEXES {
        return Err(refuse("the image's indexes name each other without an end"));
    }
    let named = |descriptor: &&Descriptor| tag.is_none_or(|tag| names(descriptor).any(|name| is_called(name, tag)));
    let entries: Vec<&Descriptor> = index.manifests().iter().filter(named).collect();
    let listed = |entries: &[&Descriptor]| {
        let names: Vec<&str> = entries.iter().flat_map(|descriptor| names(descriptor)).collect();
        if names.is_empty() { String::new() } else { format!(": it holds {}", names.join(", ")) }
    };
    if let (Some(tag), []) = (tag, entries.as_slice()) {
        let all: Vec<&Descriptor> = index.manifests().iter().collect();
        return Err(refuse(format!("there is no image `{tag}`{}", listed(&all))));
    }
    let fitting: Vec<&Descriptor> = entries.iter().copied().filter(|entry| fits(entry, platform)).collect();
    match fitting.as_slice() {
        [one] if *one.media_type() == MediaType::ImageIndex || is_docker(one, "manifest.list.v2") => {
            let bytes = blob(folder, one)?;
            choose(folder, &parse("an index", &bytes)?, platform, None, depth + 1)
        }
        [one] => {
            let bytes = blob(folder, one)?;
            parse("the image's manifest", &bytes)
        }
        [] => {
            let there: Vec<String> = entries.iter().filter_map(|entry| shown(entry)).collect();
            Err(refuse(format!(
                "there is no image for {platform}{}; --platform chooses another one",
                if there.is_empty() { String::new() } else { format!(": it has {}", there.join(", ")) }
            )))
        }
        several => Err(refuse(format!(
            "there are {} images for {platform}{}; choose one with --tag",
            several.len(),
            listed(several)
        ))),
    }
}

fn names(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    let found = descriptor.annotations().as_ref();
    NAMES.iter().filter_map(move |name| found?.get(*name)).map(String::as_str)
}

/// `web` and `registry.example/web:latest` are what people mean by one and the same image.
fn is_called(name: &str, tag: &str) -> bool {
    name == tag
        || name.rsplit('/').next() == Some(tag)
        || name.strip_suffix(":latest").is_some_and(|name| is_called(name, tag))
}

fn is_docker(descriptor: &Descriptor, kind: &str) -> bool {
    descriptor.media_type().to_string().contains(&format!("docker.distribution.{kind}"))
}

fn fits(descriptor: &Descriptor, wanted: &Platform) -> bool {
    descriptor.platform().as_ref().is_none_or(|found| {
        *found.os() == wanted.os
            && *found.architecture() == wanted.architecture
            && (wanted.variant.is_none() || *found.variant() == wanted.variant)
    })
}

fn shown(descriptor: &Descriptor) -> Option<String> {
    let found = descriptor.platform().as_ref()?;
    Some(format!("{}/{}", found.os(), found.architecture()))
}

fn of_manifest(folder: &Inside, manifest: &ImageManifest, platform: &Platform) -> Result<Vec<Layer>, Error> {
    let bytes = blob(folder, manifest.config())?;
    let configuration = configuration(&bytes, platform)?;
    let contents = configuration.rootfs().diff_ids();
    if contents.len() != manifest.layers().len() {
        return Err(refuse("the image's manifest and its configuration name different numbers of layers"));
    }
    let layer = |(named, content): (&Descriptor, &String)| {
        let kind = named.media_type().to_string();
        if !kind.contains(".tar") && !kind.contains("rootfs.diff") || kind.contains("encrypted") {
            return Err(refuse(format!("a layer is {kind}, which cannot be unpacked here")));
        }
        Ok(Layer {
            path: path_of(named.digest()),
            packed: Some((named.digest().clone(), named.size())),
            content: digest(content)?,
        })
    };
    manifest.layers().iter().zip(contents).map(layer).collect()
}

fn configuration(bytes: &[u8], platform: &Platform) -> Result<ImageConfiguration, Error> {
    let found: ImageConfiguration = parse("the image's configuration", bytes)?;
    if *found.os() != platform.os || *found.architecture() != platform.architecture {
        let (os, architecture) = (found.os(), found.architecture());
        return Err(refuse(format!(
            "the image is for {os}/{architecture}, not for {platform}; --platform chooses another one"
        )));
    }
    Ok(found)
}

fn digest(text: &str) -> Result<Name, Error> {
    text.parse().map_err(|error| refuse(format!("`{text}` is no digest: {error}")))
}

/// What `docker save` writes beside or instead of an index.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn of_saved(folder: &Inside, platform: &Platform, tag: Option<&str>) -> Result<Vec<Layer>, Error> {
    let bytes = document(folder, Path::new("manifest.json"))?;
    let all: Vec<Saved> = parse("manifest.json", &bytes)?;
    let tags = |saved: &Saved| saved.repo_tags.clone().unwrap_or_default();
    let fits = |saved: &&Saved| tag.is_none_or(|tag| tags(saved).iter().any(|name| is_called(name, tag)));
    let fitting: Vec<&Saved> = all.iter().filter(fits).collect();
    let [saved] = fitting.as_slice() else {
        let held: Vec<String> = all.iter().flat_map(tags).collect();
        return Err(refuse(format!(
            "one image is wanted, and manifest.json has {}; choose one with --tag",
            held.join(", ")
        )));
    };
    let path = Path::new(&saved.config);
    let bytes = document(folder, path)?;
    // The configuration's file is called by its digest; all others follow from its content.
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let expected = digest(&format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)))?;
    let mut hash = Hash::of(&expected, path)?;
    hash.update(&bytes);
    compare(path, &expected, &hash.finish())?;
    let configuration = configuration(&bytes, platform)?;
    let contents = configuration.rootfs().diff_ids();
    if contents.len() != saved.layers.len() {
        return Err(refuse("manifest.json and the image's configuration name different numbers of layers"));
    }
    let layers = saved.layers.iter().zip(contents);
    layers.map(|(path, content)| Ok(Layer { path: path.into(), packed: None, content: digest(content)? })).collect()
}

/// Compares a file with its digest and size.
fn check(source: &mut File, path: &Path, expected: &Name, size_bytes: u64) -> Result<(), Error> {
    let there = source.metadata().map_err(file("look at", path))?.len();
    if there != size_bytes {
        return Err(refuse(format!(
            "{} has {there} bytes and should have {size_bytes}: it is damaged or cut off; copy it again",
            path.display()
        )));
    }
    let mut hashed = Hashed { inner: &mut *source, hash: Hash::of(expected, path)? };
    io::copy(&mut hashed, &mut io::sink()).map_err(file("read", path))?;
    let found = hashed.hash.finish();
    source.seek(SeekFrom::Start(0)).map_err(file("read", path))?;
    compare(path, expected, &found)
}

fn compare(path: &Path, expected: &Name, found: &str) -> Result<(), Error> {
    if expected.digest() == found {
        return Ok(());
    }
    Err(refuse(format!(
        "the content of {} is not what it is called by: its digest is {found} and should be {}; copy it again",
        path.display(),
        expected.digest()
    )))
}

enum Hash {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hash {
    fn of(expected: &Name, path: &Path) -> Result<Self, Error> {
        match expected.algorithm() {
            DigestAlgorithm::Sha256 => Ok(Hash::Sha256(Sha256::new())),
            DigestAlgorithm::Sha512 => Ok(Hash::Sha512(Sha512::new())),
            other => Err(refuse(format!(
                "the digest of {} is of kind {}, which is not known here",
                path.display(),
                other.as_ref()
            ))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Sha512(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Hash::Sha256(hash) => hex(&hash.finalize()),
            Hash::Sha512(hash) => hex(&hash.finalize()),
        }
    }
}

struct Hashed<R> {
    inner: R,
    hash: Hash,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..got).unwrap_or_default());
        Ok(got)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use std::process::{Command, Stdio};

    fn hex(bytes: &[u8]) -> String {
        let mut hash = Hash::Sha256(Sha256::new());
        hash.update(bytes);
        hash.finish()
    }

    fn archive(name: &str, content: &str) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        builder.into_inner().unwrap()
    }

    fn packed(program: &str, bytes: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program).arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        io::Write::write_all(&mut child.stdin.take().unwrap(), bytes).unwrap();
        child.wait_with_output().unwrap().stdout
    }

    /// A layout in a folder.
    struct Fixture(tempfile::TempDir);

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join("blobs/sha256")).unwrap();
            fs::write(folder.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
            Fixture(folder)
        }

        fn blob(&self, kind: &str, bytes: &[u8]) -> serde_json::Value {
            fs::write(self.0.path().join("blobs/sha256").join(hex(bytes)), bytes).unwrap();
            json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{}", hex(bytes)), "size": bytes.len() })
        }

        /// An image of these layers, packed as told.
        fn image(&self, architecture: &str, layers: &[(&str, Vec<u8>)]) -> serde_json::Value {
            let contents: Vec<_> = layers.iter().map(|(_, bytes)| format!("sha256:{}", hex(bytes))).collect();
            let configuration = json!({ "architecture": architecture, "os": "linux", "rootfs": { "type": "layers", "diff_ids": contents } });
            let layers: Vec<_> = layers
                .iter()
                .map(|(program, bytes)| match *program {
                    "" => self.blob("layer.v1.tar", bytes),
                    program => self.blob(&format!("layer.v1.tar+{program}"), &packed(program, bytes)),
                })
                .collect();
            let config = self.blob("config.v1+json", configuration.to_string().as_bytes());
            let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
            self.blob("manifest.v1+json", manifest.to_string().as_bytes())
        }

        fn index(&self, manifests: &[serde_json::Value]) -> String {
            let text = json!({ "schemaVersion": 2, "manifests": manifests }).to_string();
            fs::write(self.0.path().join("index.json"), &text).unwrap();
            text
        }

        fn open(&self, platform: &str, tag: Option<&str>) -> Result<Container, Error> {
            Container::open(self.0.path(), &platform.parse().unwrap(), tag)
        }

        fn refused(&self) -> String {
            let opened = self.open("linux/amd64", None).and_then(|container| container.verify().map(|()| container));
            match opened {
                Err(error) => error.to_string(),
                Ok(container) => unpacked(&container).unwrap_err().to_string(),
            }
        }
    }

    fn unpacked(container: &Container) -> Result<Vec<String>, Error> {
        let root = tempfile::tempdir().unwrap();
        let mut unpacker = Unpacker::new(root.path(), None, 0)?;
        container.unpack(&mut unpacker, &|_| ())?;
        Ok(Inside::at(root.path())?.names("."))
    }

    #[test]
    fn layers_lie_over_each_other_however_they_are_packed() {
        let fixture = Fixture::new();
        let layers = [("", archive("one", "1")), ("gzip", archive("two", "2")), ("zstd", archive(".wh.one", ""))];
        fixture.index(&[fixture.image("amd64", &layers)]);
        assert!(is_container(fixture.0.path()));
        let container = fixture.open("linux/amd64", None).unwrap();
        container.verify().unwrap();
        assert_eq!(unpacked(&container).unwrap(), ["two"]);
        let sentence = fixture.open("linux/arm64", None).unwrap_err().to_string();
        assert!(
            sentence.contains("for linux/amd64, not for linux/arm64") && sentence.contains("--platform"),
            "{sentence}"
        );
    }

    #[test]
    fn the_platform_and_the_name_choose_one_of_several() {
        let fixture = Fixture::new();
        let of = |architecture: &str, name: &str, tag: &str| {
            let mut image = fixture.image(architecture, &[("", archive(name, "x"))]);
            image["platform"] = json!({ "os": "linux", "architecture": architecture });
            image["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
            image
        };
        // As buildx writes it: an index that names an index, with an attestation for no platform.
        let mut attestation = of("amd64", "x", "");
        attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
        let inner =
            json!({ "schemaVersion": 2, "manifests": [of("amd64", "intel", ""), of("arm64", "arm", ""), attestation] });
        let inner = fixture.blob("index.v1+json", inner.to_string().as_bytes());
        fixture.index(&[inner]);
        assert_eq!(unpacked(&fixture.open("linux/arm64", None).unwrap()).unwrap(), ["arm"]);
        let sentence = fixture.open("linux/s390x", None).unwrap_err().to_string();
        assert!(sentence.contains("it has linux/amd64, linux/arm64"), "{sentence}");

        fixture.index(&[of("amd64", "first", "registry.example/web:latest"), of("amd64", "second", "db")]);
        assert!(fixture.refused().contains("web:latest, db; choose one with --tag"), "{}", fixture.refused());
        for (tag, name) in [("db", "second"), ("web", "first"), ("web:latest", "first")] {
            assert_eq!(unpacked(&fixture.open("linux/amd64", Some(tag)).unwrap()).unwrap(), [name]);
        }
        assert!(fixture.open("linux/amd64", Some("none")).unwrap_err().to_string().contains("no image `none`"));
    }

    #[test]
    fn what_is_not_what_its_digest_says_is_refused() {
        let damage = |find: &dyn Fn(&Fixture, &serde_json::Value) -> PathBuf, bytes: Option<&[u8]>| {
            let fixture = Fixture::new();
            let image = fixture.image("amd64", &[("gzip", archive("a", "1"))]);
            fixture.index(std::slice::from_ref(&image));
            let path = find(&fixture, &image);
            let mut there = fs::read(&path).unwrap();
            let last = there.len() - 1;
            there[last] ^= 1;
            fs::write(&path, bytes.unwrap_or(&there)).unwrap();
            fixture.refused()
        };
        let path = |fixture: &Fixture, descriptor: &serde_json::Value| {
            let digest = descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
            fixture.0.path().join("blobs/sha256").join(digest)
        };
        let inner = |part: &'static str| {
            move |fixture: &Fixture, image: &serde_json::Value| {
                let manifest: serde_json::Value =
                    serde_json::from_slice(&fs::read(path(fixture, image)).unwrap()).unwrap();
                path(fixture, if part == "config" { &manifest["config"] } else { &manifest["layers"][0] })
            }
        };
        for find in [&path as &dyn Fn(&Fixture, &serde_json::Value) -> PathBuf, &inner("config"), &inner("layer")] {
            let sentence = damage(find, None);
            assert!(sentence.contains("its digest is") && sentence.contains("copy it again"), "{sentence}");
        }
        let sentence = damage(&inner("layer"), Some(b"short"));
        assert!(sentence.contains("5 bytes"), "{sentence}");
    }

    #[test]
    fn a_layer_whose_content_is_another_one_is_refused() {
        let fixture = Fixture::new();
        let layer = fixture.blob("layer.v1.tar", &archive("a", "1"));
        let other = format!("sha256:{}", hex(b"another"));
        let configuration =
            json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [other] } });
        let config = fixture.blob("config.v1+json", configuration.to_string().as_bytes());
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
        fixture.index(&[fixture.blob("manifest.v1+json", manifest.to_string().as_bytes())]);
        assert!(fixture.refused().contains("its digest is"), "{}", fixture.refused());
    }

    #[test]
    fn digests_and_links_never_lead_out_of_the_layout() {
        let fixture = Fixture::new();
        let image = fixture.image("amd64", &[("", archive("a", "1"))]);
        let text = fixture.index(std::slice::from_ref(&image));
        let digest = image["digest"].as_str().unwrap();
        fs::write(fixture.0.path().join("index.json"), text.replace(digest, "sha256:../../../../etc/passwd")).unwrap();
        assert!(fixture.refused().contains("index.json cannot be understood"), "{}", fixture.refused());
        fixture.index(&[]);
        fs::remove_file(fixture.0.path().join("index.json")).unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("index.json"), &text).unwrap();
        std::os::unix::fs::symlink(outside.path().join("index.json"), fixture.0.path().join("index.json")).unwrap();
        assert!(fixture.refused().contains("cannot open"), "{}", fixture.refused());
    }

    #[test]
    fn what_docker_and_podman_save_is_read_too() {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str, bytes: &[u8]| {
            fs::create_dir_all(folder.path().join(path).parent().unwrap()).unwrap();
            fs::write(folder.path().join(path), bytes).unwrap();
        };
        let (one, two) = (archive("one", "1"), archive("two", "2"));
        let contents = [&one, &two].map(|bytes| format!("sha256:{}", hex(bytes)));
        let configuration =
            json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": contents } })
                .to_string();
        let name = format!("{}.json", hex(configuration.as_bytes()));
        put(&name, configuration.as_bytes());
        put("1/layer.tar", &one);
        put("2/layer.tar", &two);
        put(
            "manifest.json",
            json!([{ "Config": name, "RepoTags": ["web:latest"], "Layers": ["1/layer.tar", "2/layer.tar"] }])
                .to_string()
                .as_bytes(),
        );
        assert!(is_container(folder.path()));
        let open = || Container::open(folder.path(), &"linux/amd64".parse().unwrap(), None);
        assert_eq!(unpacked(&open().unwrap()).unwrap(), ["one", "two"]);
        put("2/layer.tar", &one);
        assert!(unpacked(&open().unwrap()).unwrap_err().to_string().contains("its digest is"));
        put(&name, configuration.replace("linux", "Linux").as_bytes());
        assert!(open().unwrap_err().to_string().contains("its digest is"));
    }

    #[test]
    fn what_skopeo_writes_is_read_as_a_folder_and_as_an_archive() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::write(at("tree.tar"), archive("etc/motd", "hello")).unwrap();
        for (from, to) in [
            (format!("tarball:{}", at("tree.tar")), format!("oci:{}:web:1", at("oci"))),
            (format!("oci:{}:web:1", at("oci")), format!("oci-archive:{}:web:1", at("oci.tar"))),
            (format!("oci:{}:web:1", at("oci")), format!("docker-archive:{}:web:1", at("docker.tar"))),
        ] {
            let output = Command::new("skopeo").args(["--insecure-policy", "copy", &from, &to]).output();
            let output = output.expect("skopeo is missing: run `cargo xtask test`, which installs it");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        for name in ["oci", "oci.tar", "docker.tar"] {
            let source = folder.path().join(name);
            let opened = if source.is_dir() { source } else { folder.path().join(format!("{name}.unpacked")) };
            if name != "oci" {
                fs::create_dir(&opened).unwrap();
                let archive = fs::read(at(name)).unwrap();
                let mut unpacker = Unpacker::new(&opened, Some(1), 0).unwrap();
                unpacker.unpack(&mut archive.as_slice(), Path::new(name), false).unwrap();
            }
            assert!(is_container(&opened), "{name}");
            for tag in [None, Some("web:1")] {
                let container = Container::open(&opened, &Platform::own(), tag).unwrap();
                container.verify().unwrap();
                assert_eq!(unpacked(&container).unwrap(), ["etc"], "{name}");
            }
        }
    }

    #[test]
    fn platforms_are_written_as_container_tools_write_them() {
        assert_eq!("linux/arm64/v8".parse::<Platform>().unwrap().to_string(), "linux/arm64/v8");
        assert!("amd64".parse::<Platform>().unwrap_err().contains("linux/amd64"));
    }
}
