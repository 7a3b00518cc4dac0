//! Builds a partition layout on disks, and reads back whether it is there.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use fleet::layout::{Expected, Input, Plan, Step};

use crate::command::{CommandError, Run};
use crate::contents::{self, Probe, probe};
use crate::{Error, Stop};

/// How long a device may take to appear once the command that makes it has ended.
const APPEAR_LIMIT: Duration = Duration::from_secs(10);
/// How long looking at one device may take.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// Where udev does not run, these make the tools create their devices themselves and wait for nobody.
pub(crate) const WITHOUT_UDEV: [(&str, &str); 2] = [("DM_DISABLE_UDEV", "1"), ("MDADM_NO_UDEV", "1")];

/// Gives the key of an encrypted device by its name.
pub type Keys<'a> = dyn Fn(&str) -> Option<Vec<u8>> + 'a;

/// A layout that is built, with its devices open. Dropping it closes arrays, locks and volumes, so that the disks are free.
#[derive(Debug)]
pub struct Built {
    release: Vec<Step>,
    stop: Stop,
    open: bool,
}

/// Builds a layout on `disks`, which must be those of the plan. All that was on them is lost. Blocks.
///
/// # Errors
/// [`Error::Layout`] with the step that failed, or with what is not as it should be; [`Error::AttemptOver`] when stopped.
/// Nothing is left open then.
pub fn build(
    plan: &Plan,
    disks: &[String],
    keys: &Keys<'_>,
    stop: &Stop,
    told: &dyn Fn(&Step),
) -> Result<Built, Error> {
    let built = Built { release: plan.release.clone(), stop: stop.clone(), open: true };
    for disk in disks {
        contents::erase_marks(disk, stop).map_err(|error| of(&format!("take old marks off {disk}"), error))?;
    }
    for step in &plan.steps {
        told(step);
        run(step, keys, stop)?;
    }
    for expected in &plan.expected {
        check(expected, stop)?;
    }
    Ok(built)
}

impl Built {
    /// Closes everything.
    ///
    /// # Errors
    /// [`Error::Layout`] with what does not close.
    pub fn close(mut self) -> Result<(), Error> {
        self.open = false;
        for step in &self.release {
            run(step, &|_| None, &self.stop)?;
        }
        Ok(())
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        // What was not opened does not close, which is why each failure is only noted.
        for step in self.release.iter().filter(|_| self.open) {
            if let Err(error) = run(step, &|_| None, &Stop::default()) {
                tracing::debug!("{error}");
            }
        }
    }
}

fn run(step: &Step, keys: &Keys<'_>, stop: &Stop) -> Result<(), Error> {
    let limit = Duration::from_secs(step.limit_seconds.into());
    let mut run = Run::new(step.program, limit).args(&step.arguments);
    if !Path::new("/run/udev/control").exists() {
        run = WITHOUT_UDEV.iter().fold(run, |run, (name, value)| run.env(name, value));
    }
    match &step.input {
        Input::Nothing => {}
        Input::Text(text) => run = run.input(text.clone().into_bytes()),
        Input::Key(name) => {
            let missing = || Error::Layout(format!("there is no key for `{name}`"));
            run = run.input(keys(name).filter(|key| !key.is_empty()).ok_or_else(missing)?);
        }
    }
    run.text(stop).map(drop).map_err(|error| of(&step.what, error))
}

fn of(what: &str, error: CommandError) -> Error {
    match error {
        CommandError::Stopped { reason, .. } => Error::AttemptOver(reason),
        other => Error::Layout(format!("to {what}: {other}")),
    }
}

/// Looks at the device itself, not at what a command said.
fn check(expected: &Expected, stop: &Stop) -> Result<(), Error> {
    let deadline = Instant::now() + APPEAR_LIMIT;
    while !Path::new(&expected.device).exists() {
        if Instant::now() > deadline {
            let seconds = APPEAR_LIMIT.as_secs();
            return Err(Error::Layout(format!("{} has not appeared after {seconds} s", expected.device)));
        }
        if let Some(reason) = stop.reason() {
            return Err(Error::AttemptOver(reason));
        }
        thread::sleep(Duration::from_millis(20));
    }
    let found = probe(&[&expected.device], LOOK_LIMIT, stop).map_err(|error| of("read it back", error))?;
    found.first().map_or(Ok(()), |found| compare(expected, found))
}

fn compare(expected: &Expected, found: &Probe) -> Result<(), Error> {
    let kind = expected.kind.map(str::to_owned);
    let pairs = [("content", &kind, &found.kind), ("label", &expected.label, &found.label)];
    let name = ("partition name", &expected.part_name, &found.name);
    for (what, wanted, there) in pairs.into_iter().chain([name]) {
        if wanted.is_some() && wanted != there {
            let said = |text: &Option<String>| text.clone().unwrap_or_else(|| "nothing".to_owned());
            let (wanted, there) = (said(wanted), said(there));
            return Err(Error::Layout(format!("{} has {what} {there}, not {wanted}", expected.device)));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_must_be_what_was_made() {
        let expected = Expected {
            device: "/dev/vda1".into(),
            kind: Some("ext4"),
            label: Some("root".into()),
            part_name: Some("root".into()),
        };
        let right = Probe {
            kind: Some("ext4".into()),
            label: Some("root".into()),
            name: Some("root".into()),
            ..Probe::default()
        };
        assert!(compare(&expected, &right).is_ok());
        for (wrong, word) in [
            (Probe { kind: Some("xfs".into()), ..right.clone() }, "content xfs, not ext4"),
            (Probe { label: None, ..right.clone() }, "label nothing, not root"),
            (Probe { name: Some("boot".into()), ..right.clone() }, "partition name boot, not root"),
        ] {
            let sentence = compare(&expected, &wrong).unwrap_err().to_string();
            assert!(sentence.contains(word), "{sentence}");
        }
        let bare = Expected { kind: None, label: None, part_name: None, ..expected };
        assert!(compare(&bare, &Probe::default()).is_ok());
    }

    #[test]
    fn a_step_that_fails_ends_it_and_says_which() {
        let step =
            |program, input| Step { what: "do it".into(), program, arguments: Vec::new(), input, limit_seconds: 10 };
        let plan = |steps| Plan {
            steps,
            release: Vec::new(),
            expected: Vec::new(),
            mounts: Vec::new(),
            arrays: Vec::new(),
            locked: Vec::new(),
        };
        let failing = |step| build(&plan(vec![step]), &[], &|_| None, &Stop::default(), &|_| {}).map(drop).unwrap_err();
        let sentence = failing(step("false", Input::Nothing)).to_string();
        assert!(sentence.contains("to do it: false ended with status 1"), "{sentence}");
        let sentence = failing(step("true", Input::Key("data".into()))).to_string();
        assert!(sentence.contains("no key for `data`"), "{sentence}");
    }
}
