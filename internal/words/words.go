// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package words cleans text from the other side of a trust boundary before it is put into an error, a log or a
// label. A guest, a tenant or the name of a file may contain any bytes.
package words

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Most is the largest length of an error's text from a guest.
const Most = 4 << 10

// Error returns the text of a guest's error as one printable line of at most Most bytes. Agents whose errors are
// a list of causes, and a stack trace behind it, are shortened to the causes.
func Error(text string) string {
	const gap, lead = 40, Most * 5 / 8 // the beginning says what failed, the end why
	if len(text) > 16*Most {           // more is not even looked at
		text = text[:8*Most] + "\n" + text[len(text)-8*Most:]
	}
	text = Line(causes(text), len(text)*utf8.UTFMax)
	if len(text) <= Most {
		return text
	}
	left := len(text) - (Most - gap)
	return whole(text[:lead]) + fmt.Sprintf(" [… %d bytes …] ", left) + whole(text[lead+left:])
}

// whole drops what a cut left of a character at either end.
func whole(s string) string { return strings.ToValidUTF8(s, "") }

// causes puts the lines of an error in one, without stack traces and numbering.
func causes(text string) string {
	if !strings.ContainsAny(text, "\n\r") {
		return text
	}
	var out []string
	for line := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == '\r' }) {
		line = strings.TrimSpace(line)
		switch {
		case strings.EqualFold(strings.TrimSuffix(line, ":"), "stack backtrace"):
			return strings.Join(out, ": ")
		case line == "", strings.EqualFold(line, "caused by:"):
			continue
		}
		if n := strings.TrimLeft(line, "0123456789"); n != line && strings.HasPrefix(n, ": ") {
			line = n[2:]
		}
		out = append(out, strings.TrimSuffix(line, ":"))
	}
	return strings.Join(out, ": ")
}

// Line returns at most most bytes of text on one line. Characters that do not print, or would move a terminal's cursor,
// become question marks. The rest of text is not kept in memory.
func Line(text string, most int) string {
	cut := len(text) > most
	text = text[:min(len(text), most*utf8.UTFMax)] // a character gives a byte at least
	clean := true
	for i := 0; i < len(text) && clean; i++ {
		clean = text[i] >= ' ' && text[i] < 0x7f
	}
	if !clean {
		text = strings.Map(func(r rune) rune {
			switch {
			case r == '\t', r == '\n', r == '\r':
				return ' '
			case r == utf8.RuneError, !unicode.IsPrint(r):
				return '?'
			}
			return r
		}, text)
	}
	if len(text) > most {
		text = whole(text[:most])
	}
	if cut {
		text = strings.Clone(text)
	}
	return text
}

// UTF8 is text that a protobuf message takes: a byte that is not UTF-8 is written as \xNN, so that names
// still differ. Text longer than most bytes loses its end.
func UTF8(text string, most int) string {
	cut := len(text) > most
	text = text[:min(len(text), most)]
	if !utf8.ValidString(text) {
		var b strings.Builder
		for i := 0; i < len(text); {
			r, n := utf8.DecodeRuneInString(text[i:])
			if r == utf8.RuneError && n == 1 {
				fmt.Fprintf(&b, `\x%02x`, text[i])
			} else {
				b.WriteString(text[i : i+n])
			}
			i += n
		}
		text = b.String()
	}
	if len(text) > most || cut {
		text = whole(text[:min(len(text), most)]) + " […]"
	}
	return text
}
