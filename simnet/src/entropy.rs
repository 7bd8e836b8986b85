//! Randomness from a seed, for the thread of a simulation.
//!
//! Code that asks for randomness itself is answered too: the C library's `getrandom` is defined here, as the standard
//! library means it to be (it links it weakly), and gives seeded bytes on a thread that was [seeded](seed). That covers
//! the hashing of maps, and so the order in which they are walked. Every other thread gets the system's randomness.
//!
//! Keys that TLS makes for one connection are the exception: they come from within the cryptography library. They change
//! the bytes of packets, and neither their number nor their size.

use fastrand::Rng;
use rustls::crypto::{CryptoProvider, GetRandomFailed, SecureRandom};
use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    static SEEDED: RefCell<Option<Rng>> = const { RefCell::new(None) };
}

/// From now on all randomness that this thread asks for follows from `seed`. The thread must be new: what was asked for
/// before is kept by those who asked.
pub(crate) fn seed(seed: u64) {
    fastrand::seed(seed ^ 0x5eed_0001);
    SEEDED.with_borrow_mut(|rng| *rng = Some(Rng::with_seed(seed ^ 0x5eed_0002)));
}

/// Fills `bytes`. False on a thread that was not seeded.
fn fill_seeded(bytes: &mut [u8]) -> bool {
    // While a thread ends there may be none any more.
    let filled = SEEDED.try_with(|rng| match rng.try_borrow_mut() {
        Ok(mut rng) => rng.as_mut().map(|rng| rng.fill(bytes)).is_some(),
        Err(_) => false,
    });
    filled.unwrap_or(false)
}

#[derive(Debug)]
struct Seeded;

impl SecureRandom for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        if fill_seeded(bytes) { Ok(()) } else { Err(GetRandomFailed) }
    }
}

/// The cryptography of production, with seeded randomness.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { secure_random: &Seeded, ..rustls::crypto::aws_lc_rs::default_provider() })
}

#[allow(unsafe_code, reason = "the one symbol of the C library that decides whether a run can be repeated")]
mod symbol {
    use std::ffi::{c_long, c_uint, c_void};

    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }

    #[cfg(target_arch = "x86_64")]
    const SYS_GETRANDOM: c_long = 318;
    #[cfg(target_arch = "aarch64")]
    const SYS_GETRANDOM: c_long = 278;

    /// As the C library's: fills `length` bytes at `buffer`.
    ///
    /// # Safety
    /// `buffer` must be writable for `length` bytes.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
        if length > 0 {
            // SAFETY: the caller says that so many bytes can be written there.
            let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
            if super::fill_seeded(bytes) {
                return length.cast_signed();
            }
        }
        // SAFETY: the system call that the C library makes, with its own arguments.
        let filled = unsafe { syscall(SYS_GETRANDOM, buffer, length, flags) };
        isize::try_from(filled).unwrap_or(-1)
    }
}
