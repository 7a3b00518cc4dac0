//! TFTP for the first loader and nothing else: iPXE takes the rest by HTTP.

pub mod config;
pub mod loaders;
pub mod serve;
pub mod transfer;

pub use config::TftpConfig;
pub use loaders::Loaders;
