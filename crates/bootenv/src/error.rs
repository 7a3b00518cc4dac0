//! What can go wrong while packages are fetched and archives are made.

use std::path::PathBuf;

/// Why a boot environment, or something built with this crate's tools, could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program is not installed.
    #[error("the program {program} is not installed: apt-get install {package}")]
    NoProgram {
        /// The program.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program ended with an error.
    #[error("{program} failed ({status}){hint}:\n{tail}")]
    Program {
        /// The program and what it was doing.
        program: String,
        /// Its exit status or signal.
        status: String,
        /// What to try, or nothing.
        hint: &'static str,
        /// The last lines it printed.
        tail: String,
    },
    /// A program did not end in time and was killed.
    #[error("{program} did not finish within {seconds} s and was ended; its last words:\n{tail}")]
    Deadline {
        /// The program and what it was doing.
        program: String,
        /// The time it was given, in seconds.
        seconds: u64,
        /// The last lines it printed.
        tail: String,
    },
    /// The package index has no such package.
    #[error(
        "apt knows no package {package}: run `apt-get update`, and check that a Debian release with the component \"main\" is among apt's sources"
    )]
    UnknownPackage {
        /// The package asked for.
        package: String,
    },
    /// The package index says something this code does not understand.
    #[error("apt describes {package} without a usable {field} field")]
    PackageField {
        /// The package.
        package: String,
        /// The missing or malformed field.
        field: &'static str,
    },
    /// A downloaded package is not the one that the index describes.
    #[error(
        "{path} has SHA-256 {found}, the package index says {expected}: run `apt-get update` and try again",
        path = path.display()
    )]
    WrongDigest {
        /// The downloaded file.
        path: PathBuf,
        /// The digest in the package index.
        expected: String,
        /// The digest of the file.
        found: String,
    },
    /// A package does not contain what it is used for.
    #[error("the package {package} has no {wanted}")]
    NotInPackage {
        /// The package with its version.
        package: String,
        /// The file or kind of file.
        wanted: String,
    },
    /// A program in the initramfs would lack a shared library.
    #[error("{program} needs the library {library}, which is in none of the packages it depends on")]
    NoLibrary {
        /// The program or library that asks.
        program: String,
        /// The wanted `soname`.
        library: String,
    },
    /// A file is not an ELF object or is damaged.
    #[error("{path} is not a usable ELF file: {why}", path = path.display())]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The agent is not a static program, and the initramfs has no place for its libraries.
    #[error(
        "the agent {path} asks for the loader {interpreter}; it must be a static program: cargo build -p rackswarm-agent --profile agent --target x86_64-unknown-linux-musl",
        path = path.display()
    )]
    AgentNotStatic {
        /// The agent's file.
        path: PathBuf,
        /// The dynamic loader it names.
        interpreter: String,
    },
    /// A module was asked for by the caller and the kernel has no such module.
    #[error("the kernel {version} has no module {module}; modules on board by default are in netboot/initramfs")]
    NoModule {
        /// The module's name.
        module: String,
        /// The kernel's version.
        version: String,
    },
    /// An initramfs is not what this crate writes.
    #[error("{path} is not an initramfs of zstd segments: {why}", path = path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process has been holding the cache for too long.
    #[error("another build has held {path} for {seconds} s: wait for it or end it", path = path.display())]
    Busy {
        /// The lock's file.
        path: PathBuf,
        /// How long this process waited, in seconds.
        seconds: u64,
    },
}

/// Turns an I/O error into a sentence that names the file.
pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { action, path, source }
}
