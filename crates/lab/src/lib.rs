//! A data centre on one machine: network namespaces, QEMU machines with real firmware, the real server, and a check of
//! the result that does not trust the server.
//!
//! Everything has a name with this process's id in it, is ended by process id only, and is gone when its owner is
//! dropped. What a killed process left behind is found and removed by the next start ([`leftovers`]).

pub mod bench;
pub mod check;
pub mod demo;
pub mod leftovers;
pub mod netns;
pub mod rig;
pub mod scratch;
pub mod serve;
pub mod stop;
pub mod tool;
pub mod vm;
