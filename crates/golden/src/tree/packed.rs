//! Reads a file that may be compressed, through the tool of its format: a second core unpacks while the first one writes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::error::{Error, file};

/// Magic bytes, program, arguments, Debian package.
type Packing = (&'static [u8], &'static str, &'static [&'static str], &'static str);

const PACKINGS: [Packing; 4] = [
    (b"\x1f\x8b", "gzip", &["-dc"], "gzip"),
    // Frames made with --long need leave to take as much memory.
    (b"\x28\xb5\x2f\xfd", "zstd", &["-dcq", "--long=31"], "zstd"),
    (b"\xfd7zXZ\0", "xz", &["-dc"], "xz-utils"),
    (b"BZh", "bzip2", &["-dc"], "bzip2"),
];
/// What is kept of a failing tool's words, in bytes.
const WORDS_BYTES: u64 = 1024;

/// The content of `source`, unpacked where it is packed. `what` is named in errors.
pub(crate) fn read(mut source: File, what: &Path) -> Result<Box<dyn Read>, Error> {
    let mut head = [0; 6];
    let got = source.read_at(&mut head, 0).map_err(file("read", what))?;
    source.seek(SeekFrom::Start(0)).map_err(file("read", what))?;
    let head = head.get(..got).unwrap_or_default();
    let Some((_, program, arguments, package)) = PACKINGS.iter().find(|(magic, ..)| head.starts_with(magic)) else {
        return Ok(Box::new(source));
    };
    let words = tempfile::tempfile().map_err(file("make a file for the words of", program))?;
    let mut command = Command::new(program);
    command.args(*arguments).env("LC_ALL", "C").stdin(Stdio::from(source)).stdout(Stdio::piped());
    command.stderr(Stdio::from(words.try_clone().map_err(file("share a file with", program))?));
    let mut child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => bootenv::Error::NoProgram { program: (*program).to_owned(), package }.into(),
        _ => file("start", program)(source),
    })?;
    let output = child.stdout.take().ok_or_else(|| file("read from", program)(io::ErrorKind::BrokenPipe.into()))?;
    Ok(Box::new(Unpacking { child, output, words, program, what: what.to_owned(), ended: false }))
}

/// A running tool; ended when dropped.
struct Unpacking {
    child: Child,
    output: ChildStdout,
    words: File,
    program: &'static str,
    what: PathBuf,
    ended: bool,
}

impl Read for Unpacking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.output.read(buffer)?;
        if got == 0 && !buffer.is_empty() && !self.ended {
            self.ended = true;
            self.judge()?;
        }
        Ok(got)
    }
}

impl Unpacking {
    /// The end of its output is the end of the content only when the tool says so.
    fn judge(&mut self) -> io::Result<()> {
        let status = self.child.wait()?;
        if status.success() {
            return Ok(());
        }
        let mut words = Vec::new();
        self.words.seek(SeekFrom::Start(0))?;
        (&self.words).take(WORDS_BYTES).read_to_end(&mut words)?;
        let words = String::from_utf8_lossy(&words).trim().to_owned();
        Err(io::Error::other(format!(
            "{} is damaged or cut off: {} ended with {status}: {words}",
            self.what.display(),
            self.program
        )))
    }
}

impl Drop for Unpacking {
    fn drop(&mut self) {
        // It has ended already, or nobody wants the rest.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn every_packing_reads_as_what_was_packed_and_a_cut_one_fails() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        let text: Vec<u8> = (0..200_000u32).flat_map(|number| (number % 7919).to_le_bytes()).collect();
        std::fs::write(&plain, &text).unwrap();
        let all = |path: &Path| {
            let mut bytes = Vec::new();
            read(File::open(path).unwrap(), path).unwrap().read_to_end(&mut bytes).map(|_| bytes)
        };
        assert_eq!(all(&plain).unwrap(), text);
        for program in ["gzip", "zstd", "xz"] {
            let packed = folder.path().join(program);
            let output = Command::new(program).arg("-c").arg(&plain).output().unwrap();
            std::fs::write(&packed, &output.stdout).unwrap();
            assert_eq!(all(&packed).unwrap(), text, "{program}");
            std::fs::write(&packed, &output.stdout[..output.stdout.len() / 2]).unwrap();
            let error = all(&packed).unwrap_err().to_string();
            assert!(error.contains("cut off") && error.contains(program), "{error}");
        }
    }
}
