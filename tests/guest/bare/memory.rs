//! The pages the guest owns, and the check that they hold what it wrote.
//!
//! Three kinds (see `layout`): working-set pages, the high ones among them, are rewritten in turn, each
//! with the next generation, and are checked right before that, so that no
//! write can be lost unseen; static pages and zero pages change never. A walk
//! over all of them, and over the program's own code, goes on all the time; one
//! full round is a *pass*. A wrong page counts as one error and is put right,
//! so that what is counted are events.

use core::fmt::Write;
use core::ptr;

use crate::clock::Clock;
use crate::console::Line;
use crate::layout::{Layout, PAGE_BYTES};
use crate::pattern::{self, Content, Fault, Page, Pattern};

/// Errors after this many are counted but no longer described.
const DESCRIBED_ERRORS_MAX: u64 = 16;

unsafe extern "C" {
    static stub_base: u8;
    static read_only_end: u8;
}

pub struct Memory {
    pattern: Pattern,
    /// Where each kind begins.
    generations: u64,
    working_set: u64,
    high: u64,
    unchanging: u64,
    zero: u64,
    /// How many pages there are of each kind. They are numbered in this order.
    working_set_pages: u32,
    high_pages: u32,
    static_pages: u32,
    zero_pages: u32,

    filled: u32,
    next_rewritten: u32,
    next_checked: u32,
    code_sum: u64,
    pub passes: u64,
    pub errors: u64,
}

impl Memory {
    pub fn new(layout: &Layout, pattern: Pattern) -> Self {
        let pages = |range: &core::ops::Range<u64>| ((range.end - range.start) / PAGE_BYTES) as u32;
        Self {
            pattern,
            generations: layout.generations.start,
            working_set: layout.working_set.start,
            high: layout.high.start,
            unchanging: layout.unchanging.start,
            zero: layout.zero.start,
            working_set_pages: pages(&layout.working_set),
            high_pages: pages(&layout.high),
            static_pages: pages(&layout.unchanging),
            zero_pages: pages(&layout.zero),
            filled: 0,
            next_rewritten: 0,
            next_checked: 0,
            code_sum: code_sum(),
            passes: 0,
            errors: 0,
        }
    }

    /// Gives the next page its first content. False when all have theirs.
    pub fn fill_next(&mut self) -> bool {
        let page = self.filled;
        if page >= self.pages() {
            return false;
        }
        if page < self.written_pages() {
            if page < self.rewritten_pages() {
                *self.generation(page) = 0;
            }
            Content { page, generation: 0 }.fill(page_at(self.address(page)), self.pattern);
        } else {
            // Firmware may have used it; otherwise it is left untouched.
            let memory = page_at(self.address(page));
            if !pattern::is_zero(memory) {
                memory.fill(0);
            }
        }
        self.filled += 1;
        true
    }

    /// Checks the next page of the working set and writes its next generation.
    pub fn rewrite_next(&mut self, clock: &mut Clock) {
        let page = self.next_rewritten;
        if page >= self.rewritten_pages() {
            return;
        }
        self.check(page, clock);
        let generation = self.generation(page);
        *generation = generation.wrapping_add(1);
        Content { page, generation: *generation }.fill(page_at(self.address(page)), self.pattern);
        self.next_rewritten = if page + 1 < self.rewritten_pages() { page + 1 } else { 0 };
    }

    /// Checks the next page of all.
    pub fn check_next(&mut self, clock: &mut Clock) {
        if self.next_checked < self.pages() {
            self.check(self.next_checked, clock);
            self.next_checked += 1;
        }
        if self.next_checked >= self.pages() {
            self.next_checked = 0;
            self.passes += 1;
            let sum = code_sum();
            if sum != self.code_sum {
                self.code_sum = sum;
                self.report(format_args!("code changed"), clock);
            }
        }
    }

    fn check(&mut self, page: u32, clock: &mut Clock) {
        let memory = page_at(self.address(page));
        if page >= self.written_pages() {
            if !pattern::is_zero(memory) {
                memory.fill(0);
                self.report(format_args!("page {page} zero holds data"), clock);
            }
            return;
        }
        let generation = if page < self.rewritten_pages() { *self.generation(page) } else { 0 };
        let content = Content { page, generation };
        if content.is_in(memory, self.pattern) {
            return;
        }
        let fault = content.fault_in(memory, self.pattern, self.written_pages());
        content.fill(memory, self.pattern);
        let want = format_args!("page {page} gen {generation}");
        match fault {
            Fault::Stale { generation: found } => {
                self.report(format_args!("{want} holds gen {found}"), clock);
            }
            Fault::Moved { page: found, generation } => {
                self.report(format_args!("{want} holds page {found} gen {generation}"), clock);
            }
            Fault::Zeroed => self.report(format_args!("{want} holds zeroes"), clock),
            Fault::Torn => self.report(format_args!("{want} is torn"), clock),
        }
    }

    fn report(&mut self, what: core::fmt::Arguments<'_>, clock: &mut Clock) {
        self.errors += 1;
        if self.errors <= DESCRIBED_ERRORS_MAX {
            let mut line = Line::new();
            // A line takes what fits and never fails.
            let _ = write!(line, "E {what}");
            line.send(clock);
        }
    }

    fn rewritten_pages(&self) -> u32 {
        self.working_set_pages + self.high_pages
    }

    fn written_pages(&self) -> u32 {
        self.rewritten_pages() + self.static_pages
    }

    fn pages(&self) -> u32 {
        self.written_pages() + self.zero_pages
    }

    fn address(&self, page: u32) -> u64 {
        let mut number = page;
        for (start, pages) in [
            (self.working_set, self.working_set_pages),
            (self.high, self.high_pages),
            (self.unchanging, self.static_pages),
        ] {
            if number < pages {
                return start + u64::from(number) * PAGE_BYTES;
            }
            number -= pages;
        }
        self.zero + u64::from(number) * PAGE_BYTES
    }

    fn generation(&self, page: u32) -> &'static mut u32 {
        let address = self.generations + u64::from(page) * 4;
        // SAFETY: the table has an entry for each page that is rewritten, lies in memory that
        // nothing else uses, and each caller lets go of the reference before the next call.
        unsafe { &mut *ptr::with_exposed_provenance_mut(address as usize) }
    }
}

fn page_at(address: u64) -> &'static mut Page {
    // SAFETY: `Memory` forms addresses of its own pages only, all within RAM (checked against the
    // memory map before the start) and mapped one to one; callers hold one such reference at a time.
    unsafe { &mut *ptr::with_exposed_provenance_mut(address as usize) }
}

/// A sum over the program's code and constants that depends on their order.
fn code_sum() -> u64 {
    let (start, end) = (&raw const stub_base, &raw const read_only_end);
    let words = (end.addr() - start.addr()) / 8;
    let mut sum = 0u64;
    for at in 0..words {
        // SAFETY: both symbols are the linker's bounds of one mapped, aligned segment.
        let word = unsafe { start.cast::<u64>().add(at).read_volatile() };
        sum = (sum ^ word).rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    sum
}
