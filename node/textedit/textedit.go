// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package textedit adds lines to configuration files of other programs and takes them out again. All other bytes stay
// as they are, comments and line breaks included. Lines that were added stand between two marker comments, so that
// they can be taken out of a file that somebody else has changed since.
package textedit

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// The markers. The first has a reason behind it that Strip needs.
const (
	begin    = "# coco node: begin"
	end      = "# coco node: end"
	newFile  = ", the file was not here"
	noBreak  = ", no line break before"
	replaced = ", instead of: "
)

// Append puts lines at the end of a text. A nil text is a file that was not there.
func Append(text []byte, lines string) []byte {
	note, gap := "", ""
	switch {
	case text == nil:
		note = newFile
	case len(text) > 0 && text[len(text)-1] != '\n':
		note, gap = noBreak, "\n"
	}
	return fmt.Appendf(bytes.Clone(text), "%s%s%s\n%s%s\n", gap, begin, note, lines, end)
}

// top is where the first table of a TOML text begins: the keys before it belong to no table.
func top(text []byte) int {
	if m := table.FindIndex(text); m != nil {
		return m[0]
	}
	return len(text)
}

var (
	table   = regexp.MustCompile(`(?m)^[ \t]*\[`)
	version = regexp.MustCompile(`(?m)^[ \t]*version[ \t]*=.*\n`)
)

// Insert puts lines before the first table of a TOML text, behind the line with its version.
func Insert(text []byte, lines string) []byte {
	at := 0
	if m := version.FindIndex(text[:top(text)]); m != nil {
		at = m[1]
	}
	return fmt.Appendf(bytes.Clone(text[:at]), "%s\n%s%s\n%s", begin, lines, end, text[at:])
}

// Replace puts lines in the place of the one line, before the first table, that sets a key.
func Replace(text []byte, key, lines string) ([]byte, error) {
	line := regexp.MustCompile(`(?m)^[ \t]*` + regexp.QuoteMeta(key) + `[ \t]*=.*\n`)
	all := line.FindAllIndex(text[:top(text)], -1)
	if len(all) != 1 {
		return nil, fmt.Errorf("%s is set on %d lines of their own, not on one", key, len(all))
	}
	from, to := all[0][0], all[0][1]
	old := strings.TrimSuffix(string(text[from:to]), "\n")
	return fmt.Appendf(bytes.Clone(text[:from]), "%s%s%s\n%s%s\n%s", begin, replaced, old, lines, end, text[to:]), nil
}

// AddToArray puts an element in front of an array that a key before the first table has.
func AddToArray(text []byte, key, element string) ([]byte, error) {
	open := regexp.MustCompile(`(?m)^[ \t]*` + regexp.QuoteMeta(key) + `[ \t]*=[ \t]*\[`)
	all := open.FindAllIndex(text, -1)
	if len(all) != 1 || all[0][0] > top(text) {
		return nil, fmt.Errorf("no line before the first table begins with %s = [", key)
	}
	at := all[0][1]
	return fmt.Appendf(bytes.Clone(text[:at]), "%s, %s", element, text[at:]), nil
}

// RemoveFromArray undoes AddToArray.
func RemoveFromArray(text []byte, key, element string) []byte {
	added := regexp.MustCompile(`(?m)^([ \t]*` + regexp.QuoteMeta(key) + `[ \t]*=[ \t]*\[)` + regexp.QuoteMeta(element) + `, `)
	return added.ReplaceAll(text, []byte("$1"))
}

// Has tells whether lines were added to a text.
func Has(text []byte) bool { return bytes.Contains(text, []byte(begin)) }

var errBroken = errors.New("the line \"" + begin + "\" has no \"" + end + "\" behind it")

// Strip takes out all that Append, Insert and Replace have put in. It returns nil for a file that was not there and has
// nothing else in it.
func Strip(text []byte) ([]byte, error) {
	if !Has(text) {
		return text, nil
	}
	var out []byte
	wasThere := true
	for len(text) > 0 {
		at := lineWith(text, begin)
		if at < 0 {
			break
		}
		out = append(out, text[:at]...)
		first, rest, _ := bytes.Cut(text[at:], []byte("\n"))
		stop := lineWith(rest, end)
		if stop < 0 {
			return nil, errBroken
		}
		_, after, _ := bytes.Cut(rest[stop:], []byte("\n"))
		switch note := strings.TrimPrefix(string(first), begin); {
		case note == newFile:
			wasThere = false
		case note == noBreak && len(out) > 0:
			out = out[:len(out)-1]
		case strings.HasPrefix(note, replaced):
			out = append(out, strings.TrimPrefix(note, replaced)+"\n"...)
		}
		text = after
	}
	out = append(out, text...)
	if len(out) == 0 && !wasThere {
		return nil, nil
	}
	if out == nil {
		out = []byte{}
	}
	return out, nil
}

// lineWith finds the line that begins so.
func lineWith(text []byte, prefix string) int {
	if bytes.HasPrefix(text, []byte(prefix)) {
		return 0
	}
	at := bytes.Index(text, []byte("\n"+prefix))
	if at < 0 {
		return -1
	}
	return at + 1
}
