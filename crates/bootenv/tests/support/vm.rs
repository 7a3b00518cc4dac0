//! A QEMU machine whose serial console a test reads and types into. Emulated (`-accel tcg`), so it works without KVM.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long one machine may take to get where the test wants it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(360);

/// A running machine; it is ended when dropped.
pub(crate) struct Vm {
    child: Child,
    keyboard: ChildStdin,
    bytes: Receiver<Vec<u8>>,
    text: String,
    end: Instant,
    started: Instant,
}

impl Vm {
    /// Starts a machine with a serial console, no other devices than those in `args`, and a deadline.
    pub(crate) fn start(memory_mib: u32, args: &[&str]) -> Self {
        let mut child = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg,tb-size=64", "-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio"])
            .args(["-m", &memory_mib.to_string()])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-system-x86_64 is missing: run `cargo xtask test`, which installs it");
        let mut output = child.stdout.take().expect("stdout is piped");
        let keyboard = child.stdin.take().expect("stdin is piped");
        let (sender, bytes) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        let started = Instant::now();
        Vm { child, keyboard, bytes, text: String::new(), end: started + DEADLINE, started }
    }

    /// Waits until the console shows `wanted` and gives everything up to its end, which later waits do not see again.
    pub(crate) fn wait_for(&mut self, wanted: &str) -> String {
        loop {
            if let Some(at) = self.text.find(wanted) {
                let rest = self.text.split_off(at + wanted.len());
                eprintln!("{:6.1} s: {wanted:?}", self.started.elapsed().as_secs_f32());
                return std::mem::replace(&mut self.text, rest);
            }
            match self.bytes.recv_timeout(self.end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(why) => panic!("the console never showed {wanted:?} ({why}); it showed:\n{}", self.text),
            }
        }
    }

    /// Types a line.
    pub(crate) fn type_line(&mut self, line: &str) {
        writeln!(self.keyboard, "{line}").and_then(|()| self.keyboard.flush()).expect("the machine takes input");
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
