//! The probe guest: a bare-metal program for tests, and the host side of its protocol.
