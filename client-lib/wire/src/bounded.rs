//! Deserializers that stop at a limit: what comes from the network allocates no more than it may.
//!
//! Used as `#[serde(deserialize_with = "bounded::list::<_, _, 16>")]`.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, de};
use std::fmt;
use std::marker::PhantomData;

pub fn text<'de, D: Deserializer<'de>, const MAX: usize>(d: D) -> Result<String, D::Error> {
    struct Visitor<const MAX: usize>;
    impl<const MAX: usize> de::Visitor<'_> for Visitor<MAX> {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX} bytes of text")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
            if text.len() > MAX { Err(E::invalid_length(text.len(), &self)) } else { Ok(text.to_owned()) }
        }
    }
    d.deserialize_str(Visitor::<MAX>)
}

pub fn bytes<'de, D: Deserializer<'de>, const MAX: usize>(d: D) -> Result<Bytes, D::Error> {
    struct Visitor<const MAX: usize>;
    impl<const MAX: usize> de::Visitor<'_> for Visitor<MAX> {
        type Value = Bytes;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX} bytes")
        }
        fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
            if bytes.len() > MAX {
                Err(E::invalid_length(bytes.len(), &self))
            } else {
                Ok(Bytes::copy_from_slice(bytes))
            }
        }
    }
    d.deserialize_bytes(Visitor::<MAX>)
}

pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MAX: usize>(d: D) -> Result<Vec<T>, D::Error> {
    struct Visitor<T, const MAX: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MAX: usize> de::Visitor<'de> for Visitor<T, MAX> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX} items")
        }
        fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            // Grown as items really come: the announced length is not to be trusted.
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                if list.len() == MAX {
                    return Err(de::Error::invalid_length(MAX + 1, &self));
                }
                list.push(item);
            }
            Ok(list)
        }
    }
    d.deserialize_seq(Visitor::<T, MAX>(PhantomData))
}
