//! Traits through pointers, for what is chosen while a program runs.

/// Implements a trait for pointers to what has it. All of its methods must be named, so that none falls back to a default that the pointee
/// does not have; those of `&mut self` come in braces of their own.
macro_rules! forward {
    ($trait:ident for [$($pointer:ident),+] $shared:tt) => {
        $crate::forward::forward! { $trait for [$($pointer),+] $shared {} }
    };
    ($trait:ident for [$($pointer:ident),+] $shared:tt $exclusive:tt) => {
        $($crate::forward::forward! { @ $trait $pointer $shared $exclusive })+
    };
    (@ $trait:ident $pointer:ident
        { $(fn $shared:ident(&self $(, $arg:ident: $type:ty)*) -> $out:ty;)* }
        { $(fn $exclusive:ident(&mut self $(, $of:ident: $kind:ty)*) -> $result:ty;)* }
    ) => {
        #[deny(clippy::missing_trait_methods)]
        impl<T: $trait + ?Sized> $trait for $pointer<T> {
            $(fn $shared(&self $(, $arg: $type)*) -> $out {
                (**self).$shared($($arg),*)
            })*
            $(fn $exclusive(&mut self $(, $of: $kind)*) -> $result {
                (**self).$exclusive($($of),*)
            })*
        }
    };
}

pub(crate) use forward;
