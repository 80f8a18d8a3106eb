//! Parts of a message that nobody here knows: they are read over, and a message holds few of them.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::limits;

/// Reads over values of any form, and refuses when it has read over [`limits::SKIPPED_VALUES_MAX`] of them, however they
/// are nested: what makes a message expensive to read and is good for nothing ends early.
pub(crate) struct Skip {
    left: usize,
}

impl Default for Skip {
    fn default() -> Self {
        Self { left: limits::SKIPPED_VALUES_MAX }
    }
}

impl<'de> DeserializeSeed<'de> for &mut Skip {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        self.left = self.left.checked_sub(1).ok_or_else(|| D::Error::custom("too much that NIP-01 does not know"))?;
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Skip {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(&mut *self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key::<IgnoredAny>()?.is_some() {
            map.next_value_seed(&mut *self)?;
        }
        Ok(())
    }
}
