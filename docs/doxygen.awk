# How Doxygen reads a header: the comment at its top documents the file, formulas, which are indented, stand as they
# are written, and names are those of namespace fastrope, without the instruction set.
BEGIN { print "/// @file" }
/^#pragma once/ { below_top = 1 }
!below_top { sub(/^\/\//, "///") }
{
  sub(/^namespace fastrope::inline FASTROPE_TARGET/, "namespace fastrope")
  # A line that goes on with an operator begins no list and no quotation.
  sub(/^ *\/\/\/ \.\./, "/// \\&#46;.")
  sub(/^ *\/\/\/ >/, "/// \\&gt;")
  sub(/^ *\/\/\/ +\+ /, "/// \\&#43; ")
  sub(/^ *\/\/\/ \* /, "/// \\&#42; ")
  if ($0 ~ /^ *\/\/\/ - [^A-Z]/) sub(/\/\/\/ - /, "/// \\&minus; ")

  indented = /^ *\/\/\/     /
  if (indented != formula) print "///"
  formula = indented
  print
}
