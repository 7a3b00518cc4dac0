#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rackswarm_fuzz::lldp::check(data);
});
