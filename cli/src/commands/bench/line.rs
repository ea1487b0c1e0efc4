//! Where in a JSON text something stands: from a path like `hosts[3].name` to a line.

/// The line, from 1, of the value whose path `what` begins with, or of the last part of the path that is there;
/// nothing when it begins with no path. `text` is JSON.
pub(super) fn of(text: &[u8], what: &str) -> Option<usize> {
    let in_path = |c: char| c.is_ascii_alphanumeric() || "_.[]".contains(c);
    let path = &what[..what.find(|c| !in_path(c)).unwrap_or(what.len())];
    let mut scan = Scan { text, at: 0 };
    scan.space();
    let mut found = None;
    for part in path.split(['.', '[']).map(|part| part.trim_end_matches(']')) {
        let entered = match part.parse::<usize>() {
            Ok(index) => scan.element(index),
            Err(_) => scan.field(part),
        };
        if entered.is_none() {
            break;
        }
        found = Some(scan.at);
    }
    let lines = |at: usize| text[..at].iter().filter(|byte| **byte == b'\n').count();
    found.map(|at| 1 + lines(at))
}

/// A place in a JSON text.
struct Scan<'t> {
    text: &'t [u8],
    at: usize,
}

impl Scan<'_> {
    fn next(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while self.next().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// Goes past this byte if it comes next, and past space around it.
    fn take(&mut self, byte: u8) -> Option<()> {
        self.space();
        if self.next() != Some(byte) {
            return None;
        }
        self.at += 1;
        self.space();
        Some(())
    }

    /// Goes to the value of a field of the object that begins here.
    fn field(&mut self, name: &str) -> Option<()> {
        self.take(b'{')?;
        loop {
            let begin = self.at;
            self.string()?;
            let is_it = self.text[begin + 1..self.at - 1] == *name.as_bytes();
            self.take(b':')?;
            if is_it {
                return Some(());
            }
            self.value()?;
            self.take(b',')?;
        }
    }

    /// Goes to an element of the array that begins here.
    fn element(&mut self, index: usize) -> Option<()> {
        self.take(b'[')?;
        for _ in 0..index {
            self.value()?;
            self.take(b',')?;
        }
        (self.next() != Some(b']')).then_some(())
    }

    /// Goes past the string that begins here.
    fn string(&mut self) -> Option<()> {
        if self.next() != Some(b'"') {
            return None;
        }
        self.at += 1;
        loop {
            let byte = self.next()?;
            self.at += if byte == b'\\' { 2 } else { 1 };
            if byte == b'"' {
                return Some(());
            }
        }
    }

    /// Goes past the value that begins here.
    fn value(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.next()? {
                b'"' => self.string()?,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' | b',' if depth == 0 => return Some(()),
                b'}' | b']' => {
                    depth -= 1;
                    self.at += 1;
                }
                _ => self.at += 1,
            }
            if depth == 0 && self.next().is_none_or(|byte| b"}],".contains(&byte)) {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"a": 1,
  "b": [{"x": "]}\"," },
        {"x": 2, "y": [[], {}],
         "z":
           3}],
  "c_d": {"e":
    null}}"#;

    fn check(what: &str, expected: Option<usize>) {
        assert_eq!(of(TEXT.as_bytes(), what), expected, "{what}");
    }

    #[test]
    fn a_path_is_followed_to_its_line() {
        check("a: wrong", Some(1));
        check("b[0]: wrong", Some(2));
        check("b[1].y[1] (name): wrong", Some(3));
        check("b[1].z: wrong", Some(5));
        check("c_d.e", Some(7));
    }

    #[test]
    fn what_is_not_there_is_where_its_owner_is() {
        check("b[1].missing: wrong", Some(3));
        check("b[2]: wrong", Some(2));
        check("c_d.f", Some(6));
        check("nothing: wrong", None);
        assert_eq!(of(b"", "a: wrong"), None);
        assert_eq!(of(b"{\"a", "a: wrong"), None);
    }
}
