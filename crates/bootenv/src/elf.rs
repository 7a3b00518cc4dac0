//! The few things that are asked of ELF files: what they need and what a kernel module says about itself.

use std::fs::{self, File};
use std::path::Path;

use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{Dyn, FileHeader, SectionHeader};
use object::{Endianness, Object, ObjectSection, ReadCache};

use crate::{Error, error::file};

/// What a program or shared library asks of the dynamic loader.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// The loader's path; none for static programs and most libraries.
    pub(crate) interpreter: Option<String>,
    /// The wanted libraries' names.
    pub(crate) libraries: Vec<String>,
}

/// Reads what a program or library needs.
pub(crate) fn needs(path: &Path) -> Result<Needs, Error> {
    let bytes = fs::read(path).map_err(file("read", path))?;
    needs_of(&bytes).map_err(|why| Error::Elf { path: path.to_owned(), why })
}

fn needs_of(bytes: &[u8]) -> Result<Needs, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    let header = FileHeader64::<Endianness>::parse(bytes).map_err(|error| error.to_string())?;
    let endian = header.endian().map_err(|error| error.to_string())?;
    let sections = header.sections(endian, bytes).map_err(|error| error.to_string())?;
    let interpreter = match sections.section_by_name(endian, b".interp") {
        Some((_, section)) => Some(text(section.data(endian, bytes).map_err(|error| error.to_string())?)),
        None => None,
    };
    let mut libraries = Vec::new();
    if let Some((entries, index)) = sections.dynamic(endian, bytes).map_err(|error| error.to_string())? {
        let strings = sections.strings(endian, bytes, index).map_err(|error| error.to_string())?;
        for entry in entries.iter().filter(|entry| entry.d_tag(endian) == DT_NEEDED) {
            libraries.push(text(entry.string(endian, strings).map_err(|error| error.to_string())?));
        }
    }
    Ok(Needs { interpreter, libraries })
}

/// The `key=value` lines of a kernel module's `.modinfo` section, in their order.
pub(crate) fn modinfo(path: &Path) -> Result<Vec<(String, String)>, Error> {
    let damaged = |why: String| Error::Elf { path: path.to_owned(), why };
    let source = ReadCache::new(File::open(path).map_err(file("open", path))?);
    let module = object::File::parse(&source).map_err(|error| damaged(error.to_string()))?;
    let section = module.section_by_name(".modinfo").ok_or_else(|| damaged("no .modinfo section".to_owned()))?;
    let bytes = section.data().map_err(|error| damaged(error.to_string()))?;
    let lines = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    Ok(lines.filter_map(|line| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_names_loader_and_libraries() {
        let needs = needs(&std::env::current_exe().unwrap()).unwrap();
        assert!(needs.interpreter.unwrap().contains("ld-"));
        assert!(needs.libraries.iter().any(|name| name.starts_with("libc.so")));
    }

    #[test]
    fn a_script_is_no_program() {
        assert!(needs_of(b"#!/bin/sh\n").is_err());
    }
}
