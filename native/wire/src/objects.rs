//! The objects in a payload, without its terms: for whoever has counted on terms that are not made after all.

use crate::bytes::Source;
use crate::tag;

/// Tells the number of every object of a worker in one term, in order: of as many as are in it before it ends, or is none. Terms come one
/// after the other, whatever holds them, so nothing is kept of those that are open but how many there are. It looks at `most` terms.
pub fn objects<S: Source>(source: &mut S, most: u64, each: impl FnMut(u64)) {
    // What cannot be read is the end.
    let _ = walk(source, most, each);
}

fn walk<S: Source>(source: &mut S, most: u64, mut each: impl FnMut(u64)) -> Option<()> {
    let mut left: u64 = 1;
    for _ in 0..most {
        if left == 0 {
            break;
        }
        let [tag] = source.take()?;
        left -= 1;
        match tag {
            tag::RESOURCE => each(u64::from_be_bytes(source.take()?)),
            tag::NAME => {
                source.take::<9>()?;
                skip(source, 0, length)?;
            }
            tag::SMALL_INTEGER => skip_all(source, 1)?,
            tag::INTEGER => skip_all(source, 4)?,
            tag::NEW_FLOAT => skip_all(source, 8)?,
            tag::NIL => {}
            tag::SMALL_TUPLE => left += byte(source)?,
            tag::LARGE_TUPLE => left += length(source)?,
            tag::LIST => left += length(source)? + 1,
            tag::MAP => left += 2 * length(source)?,
            tag::BINARY => skip(source, 0, length)?,
            tag::BIT_BINARY => skip(source, 1, length)?,
            tag::SMALL_BIG => skip(source, 1, byte)?,
            tag::LARGE_BIG => skip(source, 1, length)?,
            tag::STRING | tag::ATOM | tag::ATOM_UTF8 => skip(source, 0, short)?,
            tag::SMALL_ATOM | tag::SMALL_ATOM_UTF8 => skip(source, 0, byte)?,
            _ => return None,
        }
        if left > source.remaining() as u64 {
            return None;
        }
    }
    Some(())
}

fn byte<S: Source>(source: &mut S) -> Option<u64> {
    source.take().map(|[byte]| byte.into())
}

fn short<S: Source>(source: &mut S) -> Option<u64> {
    source.take().map(|bytes| u16::from_be_bytes(bytes).into())
}

fn length<S: Source>(source: &mut S) -> Option<u64> {
    source.take().map(|bytes| u32::from_be_bytes(bytes).into())
}

/// A length, `more` bytes, and as many as the length says.
fn skip<S: Source>(source: &mut S, more: u64, length: impl FnOnce(&mut S) -> Option<u64>) -> Option<()> {
    let length = length(source)? + more;
    skip_all(source, length)
}

fn skip_all<S: Source>(source: &mut S, length: u64) -> Option<()> {
    source.skip(usize::try_from(length).ok()?).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::SliceSource;

    fn found(bytes: &[u8]) -> Vec<u64> {
        let mut found = Vec::new();
        objects(&mut SliceSource::new(bytes), u64::MAX, |id| found.push(id));
        found
    }

    fn object(id: u64) -> Vec<u8> {
        [&[tag::RESOURCE][..], &id.to_be_bytes()].concat()
    }

    #[test]
    fn all_are_found_behind_terms_of_every_kind() {
        let others: [&[u8]; 17] = [
            &[tag::SMALL_INTEGER, 2],
            &[tag::INTEGER, 2, 2, 2, 2],
            &[tag::NEW_FLOAT, 2, 2, 2, 2, 2, 2, 2, 2],
            &[tag::NIL],
            &[tag::SMALL_TUPLE, 0],
            &[tag::LARGE_TUPLE, 0, 0, 0, 1, tag::NIL],
            &[tag::LIST, 0, 0, 0, 0, tag::NIL],
            &[tag::MAP, 0, 0, 0, 1, tag::NIL, tag::NIL],
            &[tag::BINARY, 0, 0, 0, 2, 2, 2],
            &[tag::BIT_BINARY, 0, 0, 0, 2, 3, 2, 2],
            &[tag::SMALL_BIG, 2, 1, 2, 2],
            &[tag::LARGE_BIG, 0, 0, 0, 2, 1, 2, 2],
            &[tag::STRING, 0, 2, 2, 2],
            &[tag::ATOM, 0, 2, 2, 2],
            &[tag::SMALL_ATOM, 2, 2, 2],
            &[tag::SMALL_ATOM_UTF8, 2, 2, 2],
            &[tag::NAME, 0, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0],
        ];
        let mut bytes = vec![tag::LIST, 0, 0, 0, 2 * others.len() as u8];
        for (id, other) in others.iter().enumerate() {
            bytes.extend_from_slice(other);
            bytes.extend(object(id as u64));
        }
        bytes.extend(object(99));
        let expected: Vec<u64> = (0..others.len() as u64).chain([99]).collect();
        assert_eq!(found(&bytes), expected);
    }

    #[test]
    fn no_more_terms_are_looked_at_than_wanted() {
        let bytes = [&[tag::SMALL_TUPLE, 3][..], &object(1), &object(2), &object(3)].concat();
        for most in 0..6 {
            let mut found = Vec::new();
            objects(&mut SliceSource::new(&bytes), most, |id| found.push(id));
            assert_eq!(found, (1..most.min(4)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_no_term_is_the_end() {
        let two = [&[tag::SMALL_TUPLE, 3][..], &object(1), &object(2)].concat();
        assert_eq!(found(&[&two[..], &[131]].concat()), [1, 2]);
        assert_eq!(
            found(&[&two[..], &[tag::BINARY, 255, 255, 255, 255, 0]].concat()),
            [1, 2]
        );
        assert_eq!(found(&[tag::LIST, 255, 255, 255, 255]), []);
        assert_eq!(found(&object(7)[..5]), []);
        assert_eq!(found(&[]), []);
    }
}
