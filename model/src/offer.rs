//! What hosts offer and VMs need beyond CPU and memory, as words.
//!
//! A word is free-form, by convention a kind and a name: `storage:san-1`,
//! `network:dmz`. A VM runs only on a host that offers every word it needs.

use std::collections::BTreeSet;

use crate::{Refusal, RefusalCode};

/// The most words a VM may need.
pub const NEEDS_MAX: usize = 32;
/// The most words a host may offer.
pub const OFFERS_MAX: usize = 256;
/// The longest word, in bytes.
pub const WORD_BYTES_MAX: usize = 64;

/// Checks how many words there are and what they are made of; `whose` begins the sentence of the refusal, e.g.
/// `VM web-1 needs`.
///
/// # Errors
/// `InvalidArgument` naming the word, or the number of words.
pub fn validate(whose: &str, words: &BTreeSet<String>, most: usize) -> Result<(), Refusal> {
    let invalid = |reason: String| {
        Refusal::new(
            RefusalCode::InvalidArgument,
            reason,
            format!(
                "use at most {most} words of 1 to {WORD_BYTES_MAX} letters, digits and signs, without spaces and \
                 commas, e.g. storage:san-1"
            ),
        )
    };
    if words.len() > most {
        return Err(invalid(format!("{whose} {} words", words.len())));
    }
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b',';
    let is_word =
        |word: &&String| (1..=WORD_BYTES_MAX).contains(&word.len()) && word.bytes().all(fits);
    match words.iter().find(|word| !is_word(word)) {
        None => Ok(()),
        Some(word) => {
            let shown: String = word.chars().take(WORD_BYTES_MAX).collect();
            Err(invalid(format!("{whose} {shown:?}, which is no word")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(words: &[&str], expected: Option<&str>) {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        let refusal = validate("VM web-1 needs", &words, 2).err();
        let reason = refusal.map(|refusal| refusal.reason);
        assert_eq!(reason.as_deref(), expected);
    }

    #[test]
    fn words_are_bounded_in_number_and_length() {
        check(&[], None);
        check(&["storage:san-1", "network:dmz"], None);
        check(&["a", "b", "c"], Some("VM web-1 needs 3 words"));
        check(&[&"x".repeat(WORD_BYTES_MAX)], None);
        let shown = "x".repeat(WORD_BYTES_MAX);
        let expected = format!("VM web-1 needs {shown:?}, which is no word");
        check(&[&"x".repeat(1_000)], Some(&expected));
    }

    #[test]
    fn words_stand_for_themselves_wherever_they_are_written() {
        for word in ["", "a b", "a,b", "a\0", "dämmerung", "a\n"] {
            check(&[word], Some(&format!("VM web-1 needs {word:?}, which is no word")));
        }
    }
}
