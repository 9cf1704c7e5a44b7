//! Metadata values. Arrays stay in the file until asked for: a vocabulary is large and wanted once.

use std::fmt;

use super::cursor::Cursor;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Array),
}

/// An array, by its place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Array {
    element: u32,
    count: u64,
    start: usize,
}

/// Nesting of arrays in arrays.
const MAX_DEPTH: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

impl Value {
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let ty = cursor.u32()?;
        Self::read_as(cursor, ty, 0)
    }

    fn read_as(cursor: &mut Cursor<'_>, ty: u32, depth: u32) -> Result<Self, String> {
        Ok(match ty {
            0 => Self::Unsigned(u64::from(cursor.array::<1>()?[0])),
            1 => Self::Signed(i64::from(i8::from_le_bytes(cursor.array()?))),
            2 => Self::Unsigned(u64::from(u16::from_le_bytes(cursor.array()?))),
            3 => Self::Signed(i64::from(i16::from_le_bytes(cursor.array()?))),
            4 => Self::Unsigned(u64::from(cursor.u32()?)),
            5 => Self::Signed(i64::from(i32::from_le_bytes(cursor.array()?))),
            6 => Self::Float(f64::from(f32::from_le_bytes(cursor.array()?))),
            7 => Self::Bool(cursor.array::<1>()?[0] != 0),
            STRING => Self::Text(cursor.string()?),
            ARRAY => {
                let (element, count) = (cursor.u32()?, cursor.u64()?);
                let array = Array { element, count, start: cursor.position() };
                skip(cursor, array, depth)?;
                Self::Array(array)
            }
            10 => Self::Unsigned(cursor.u64()?),
            11 => Self::Signed(i64::from_le_bytes(cursor.array()?)),
            12 => Self::Float(f64::from_le_bytes(cursor.array()?)),
            other => return Err(format!("unknown value type {other}")),
        })
    }

    pub(super) fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(v) => Some(*v),
            Self::Signed(v) => u64::try_from(*v).ok(),
            _ => None,
        }
    }

    pub(super) fn as_u32(&self) -> Option<u32> {
        self.as_u64().and_then(|v| u32::try_from(v).ok())
    }

    pub(super) fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(v) => Some(*v),
            Self::Unsigned(v) => Some(*v as f64),
            Self::Signed(v) => Some(*v as f64),
            _ => None,
        }
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(v) = self { Some(*v) } else { None }
    }

    pub(super) fn as_text(&self) -> Option<String> {
        if let Self::Text(v) = self { Some(v.clone()) } else { None }
    }
}

/// For error messages, which need no whole chat template.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(v) => write!(f, "{v}"),
            Self::Signed(v) => write!(f, "{v}"),
            Self::Float(v) => write!(f, "{v:?}"),
            Self::Bool(v) => write!(f, "{v}"),
            Self::Text(v) => write!(f, "{:?}", v.chars().take(60).collect::<String>()),
            Self::Array(v) => write!(f, "an array of {}", v.count),
        }
    }
}

/// Moves past an array's elements, checking that they are there.
fn skip(cursor: &mut Cursor<'_>, array: Array, depth: u32) -> Result<(), String> {
    if depth >= MAX_DEPTH {
        return Err("arrays nested too deeply".into());
    }
    let width = match array.element {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    };
    match width {
        Some(width) => {
            let bytes = usize::try_from(array.count).ok().and_then(|count| count.checked_mul(width));
            cursor.take(bytes.ok_or_else(|| format!("an array of {} elements", array.count))?)?;
        }
        None => {
            for _ in 0..array.count {
                Value::read_as(cursor, array.element, depth + 1)?;
            }
        }
    }
    Ok(())
}

impl Array {
    /// Its elements, each as `get` has it.
    pub(super) fn read<T>(&self, bytes: &[u8], get: impl Fn(Value) -> Option<T>) -> Result<Vec<T>, String> {
        let mut cursor = Cursor::at(bytes, self.start);
        // `skip` has seen every element, so the count is no larger than the file.
        (0..self.count)
            .map(|i| {
                let value = Value::read_as(&mut cursor, self.element, 1)?;
                get(value).ok_or_else(|| format!("element {i} has another type"))
            })
            .collect()
    }
}
