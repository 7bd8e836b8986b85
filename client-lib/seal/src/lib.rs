//! The encryption of a file: XChaCha20-Poly1305 in chunks, bound to their places by STREAM (Hoang, Reyhanitabar, Rogaway,
//! Vizár: Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance, CRYPTO 2015): one that is moved, left out,
//! doubled or cut off at the end is noticed, and each can be read without those before it.
//!
//! The file is padded with zeros to a length that tells little about it (Padmé; Nikitin and others: Reducing Metadata
//! Leakage from Encrypted Files and Communication with PURBs, PETS 2019), at most 12 % more. The version of this scheme and
//! the padded length are authenticated with every chunk. The same key and file give the same bytes, so that a part can be
//! made again when it must be sent again; a key is never used for another content.

use aead_stream::{NewStream, StreamBE32, StreamPrimitive};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use godwit_wire::blob::{CHUNK_BYTES, TAG_BYTES, sealed_bytes};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

const VERSION: u8 = 1;
/// Bytes of a chunk with its tag.
pub const SEALED_CHUNK_BYTES: u64 = CHUNK_BYTES + TAG_BYTES;

/// The key of one file. It is drawn anew for each file and each content, and travels in the message only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileKey(pub [u8; 32]);

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileKey")
    }
}

/// A chunk is not what was sealed: it was changed, moved, or sealed with another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunk {0} is damaged, or not of this file")]
pub struct Damaged(pub u64);

/// Seals and opens the chunks of one file.
pub struct Cipher {
    stream: StreamBE32<XChaCha20Poly1305>,
    plain_bytes: u64,
    padded_bytes: u64,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cipher").field("plain_bytes", &self.plain_bytes).finish_non_exhaustive()
    }
}

/// The length that a file is padded to.
fn padded(bytes: u64) -> u64 {
    if bytes < 2 {
        return bytes;
    }
    let exponent = bytes.ilog2();
    let kept = exponent.ilog2() + 1;
    let mask = (1u64 << (exponent - kept.min(exponent))) - 1;
    bytes.saturating_add(mask) & !mask
}

impl Cipher {
    /// For a file of so many bytes.
    pub fn new(key: &FileKey, plain_bytes: u64) -> Self {
        // The key has no other use, so the nonce's prefix need not vary.
        let stream = StreamBE32::from_aead(XChaCha20Poly1305::new(&key.0.into()), &[0; 19].into());
        Self { stream, plain_bytes, padded_bytes: padded(plain_bytes) }
    }

    /// Chunks of the file; an empty one has one.
    pub fn chunks(&self) -> u64 {
        self.padded_bytes.div_ceil(CHUNK_BYTES).max(1)
    }

    /// Bytes of the whole file, sealed.
    pub fn sealed_bytes(&self) -> u64 {
        sealed_bytes(self.padded_bytes)
    }

    /// Which bytes of the file a chunk holds; what is left of the chunk is padding.
    pub fn plain_of(&self, chunk: u64) -> Range<u64> {
        let start = chunk * CHUNK_BYTES;
        start.min(self.plain_bytes)..(start + CHUNK_BYTES).min(self.plain_bytes)
    }

    /// Which bytes of the sealed file a chunk is.
    pub fn sealed_of(&self, chunk: u64) -> Range<u64> {
        let start = chunk * SEALED_CHUNK_BYTES;
        start..(start + SEALED_CHUNK_BYTES).min(self.sealed_bytes())
    }

    fn place(&self, chunk: u64) -> Option<(u32, bool)> {
        let last = self.chunks() - 1;
        u32::try_from(chunk).ok().filter(|_| chunk <= last).map(|place| (place, chunk == last))
    }

    fn associated(&self) -> [u8; 9] {
        let mut data = [VERSION; 9];
        data[1..].copy_from_slice(&self.padded_bytes.to_be_bytes());
        data
    }

    /// Seals what [`Cipher::plain_of`] says, in place: padding and tag are added.
    ///
    /// # Panics
    /// If the file has no such chunk.
    pub fn seal(&self, chunk: u64, buffer: &mut Vec<u8>) {
        let (place, is_last) = self.place(chunk).expect("who seals goes by the number of chunks");
        let padded = (self.padded_bytes - chunk * CHUNK_BYTES).min(CHUNK_BYTES);
        buffer.resize(usize::try_from(padded).expect("a chunk is small"), 0);
        let sealed = self.stream.encrypt_in_place(place, is_last, &self.associated(), buffer);
        sealed.expect("a chunk is far below the cipher's limit");
    }

    /// Opens a chunk in place, and leaves of it what is the file's.
    ///
    /// # Errors
    /// It is not that chunk of this file; `buffer` is then of no use.
    pub fn open(&self, chunk: u64, buffer: &mut Vec<u8>) -> Result<(), Damaged> {
        let (place, is_last) = self.place(chunk).ok_or(Damaged(chunk))?;
        let opened = self.stream.decrypt_in_place(place, is_last, &self.associated(), buffer);
        opened.map_err(|_| Damaged(chunk))?;
        let plain = self.plain_of(chunk);
        let padded = (self.padded_bytes - chunk * CHUNK_BYTES).min(CHUNK_BYTES);
        if buffer.len() as u64 != padded {
            return Err(Damaged(chunk));
        }
        buffer.truncate(usize::try_from(plain.end - plain.start).expect("a chunk is small"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: FileKey = FileKey([7; 32]);

    fn file(bytes: u64) -> Vec<u8> {
        (0..bytes).map(|i| u8::try_from(i % 251).unwrap()).collect()
    }

    fn range(range: Range<u64>) -> Range<usize> {
        usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
    }

    fn sealed(file: &[u8]) -> Vec<Vec<u8>> {
        let cipher = Cipher::new(&KEY, file.len() as u64);
        let seal = |chunk| {
            let mut buffer = file[range(cipher.plain_of(chunk))].to_vec();
            cipher.seal(chunk, &mut buffer);
            assert_eq!(buffer.len(), range(cipher.sealed_of(chunk)).len());
            buffer
        };
        (0..cipher.chunks()).map(seal).collect()
    }

    fn sizes() -> impl Strategy<Value = u64> {
        prop_oneof![0..200u64, 65_400..65_700u64, 131_000..131_200u64, 0..300_000u64]
    }

    #[test]
    fn padding_costs_little_and_tells_little() {
        let all: std::collections::BTreeSet<u64> = (0..100_000).map(padded).collect();
        assert!(all.len() < 200, "{} lengths", all.len());
        for bytes in (0..200_000).chain([1 << 31, (1 << 31) + 1, 3_000_000_000, u64::MAX]) {
            let padded = padded(bytes);
            assert!(padded >= bytes || bytes == u64::MAX, "{bytes}: {padded}");
            assert!(padded - bytes.min(padded) <= bytes / 8, "{bytes}: {padded}");
        }
        // A limit of so many bytes is not passed by what fits it.
        assert_eq!(padded(2 << 30), 2 << 30);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_file_comes_back_from_any_of_its_chunks(bytes in sizes()) {
            let file = file(bytes);
            let cipher = Cipher::new(&KEY, bytes);
            let chunks = sealed(&file);
            prop_assert_eq!(chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>(), cipher.sealed_bytes());
            prop_assert_eq!(&sealed(&file), &chunks);
            for (i, mut chunk) in chunks.into_iter().enumerate().rev() {
                prop_assert_eq!(cipher.open(i as u64, &mut chunk), Ok(()));
                prop_assert_eq!(&chunk[..], &file[range(cipher.plain_of(i as u64))]);
            }
        }

        #[test]
        fn any_changed_byte_is_noticed(bytes in sizes(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let cipher = Cipher::new(&KEY, bytes);
            let mut chunks = sealed(&file(bytes));
            let i = at.index(chunks.len());
            let byte = at.index(chunks[i].len());
            chunks[i][byte] ^= 1 << bit;
            prop_assert_eq!(cipher.open(i as u64, &mut chunks[i]), Err(Damaged(i as u64)));
        }

        #[test]
        fn chunks_in_another_place_cut_or_of_another_file_are_noticed(bytes in 70_000..300_000u64) {
            let cipher = Cipher::new(&KEY, bytes);
            let chunks = sealed(&file(bytes));
            let last = chunks.len() - 1;
            prop_assert!(cipher.open(1, &mut chunks[0].clone()).is_err());
            prop_assert!(cipher.open(0, &mut chunks[last].clone()).is_err());
            prop_assert!(cipher.open(last as u64 + 1, &mut chunks[last].clone()).is_err());
            for cut in [0, 15, 16, 17, chunks[0].len() - 1] {
                prop_assert!(cipher.open(0, &mut chunks[0][..cut].to_vec()).is_err());
            }
            // A file that ends after its first chunk, or has another length, or another key.
            prop_assert!(Cipher::new(&KEY, CHUNK_BYTES).open(0, &mut chunks[0].clone()).is_err());
            prop_assert!(Cipher::new(&KEY, 2 * bytes).open(0, &mut chunks[0].clone()).is_err());
            prop_assert!(Cipher::new(&FileKey([8; 32]), bytes).open(0, &mut chunks[0].clone()).is_err());
        }
    }
}
