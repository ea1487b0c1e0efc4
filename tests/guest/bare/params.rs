//! The command line as a value: `key=value` words in any order.

/// What the guest is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    pub heartbeat_nanos: u64,
    pub tsc_khz: Option<u64>,
}

impl Params {
    pub fn parse(cmdline: &[u8]) -> Result<Self, &'static str> {
        let mut params = Self { heartbeat_nanos: 200_000_000, tsc_khz: None };
        for word in cmdline.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty())
        {
            let at = word.iter().position(|&byte| byte == b'=').ok_or("parameter without =")?;
            let (key, value) = (&word[..at], &word[at + 1..]);
            let number = core::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
            match key {
                b"hb_ms" => {
                    params.heartbeat_nanos = number
                        .filter(|ms| (1..=60_000).contains(ms))
                        .ok_or("hb_ms: use 1 to 60000")?
                        * 1_000_000
                }
                b"tsc_khz" => params.tsc_khz = Some(number.ok_or("tsc_khz: not a number")?),
                _ => {}
            }
        }
        Ok(params)
    }
}
