//! Messages to model values, checked, and back.
