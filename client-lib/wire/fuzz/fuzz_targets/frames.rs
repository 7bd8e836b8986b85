//! Arbitrary bytes into every decoder.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| godwit_wire::check_arbitrary(bytes));
