// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package initdata

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits of what a text may have.
const (
	maxKeys = 64  // in a table
	maxKey  = 255 // bytes of a key; it becomes a file's name
)

// fields is what a text says: its keys before [data], and those below.
type fields struct {
	top, data map[string]string
}

// read reads the part of TOML 1.0 that initdata is written in: comments, keys that are bare or quoted, the four kinds
// of strings as values, and one table, [data]. Dotted keys, other tables and other values are refused. The work is
// linear in the text, and the memory is that of the values.
func read(text []byte) (fields, error) {
	f := fields{top: map[string]string{}, data: map[string]string{}}
	if !utf8.Valid(text) {
		return f, errors.New("initdata is not UTF-8, so it is not TOML")
	}
	s := scanner{rest: text, line: 1}
	if err := s.document(f); err != nil {
		return f, fmt.Errorf("initdata is not TOML in its format: line %d %w", s.line, err)
	}
	return f, nil
}

// scanner holds what of a text is unread.
type scanner struct {
	rest []byte
	line int
}

func (s *scanner) document(f fields) error {
	table, inData := f.top, false
	for len(s.rest) > 0 {
		s.blanks()
		var err error
		switch {
		case s.at("["):
			if inData {
				return errors.New("begins a second table; the format has [data] alone")
			}
			table, inData, err = f.data, true, s.header()
		case !s.at("#") && !s.atNewline():
			err = s.pair(table)
		}
		if err == nil {
			err = s.endOfLine()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) at(prefix string) bool { return bytes.HasPrefix(s.rest, []byte(prefix)) }

// atNewline is true at the text's end too.
func (s *scanner) atNewline() bool { return len(s.rest) == 0 || s.at("\n") || s.at("\r\n") }

func (s *scanner) skip(n int) {
	s.line += bytes.Count(s.rest[:n], []byte("\n"))
	s.rest = s.rest[n:]
}

func (s *scanner) blanks() {
	for s.at(" ") || s.at("\t") {
		s.rest = s.rest[1:]
	}
}

// newline skips one, if there is one.
func (s *scanner) newline() {
	switch {
	case s.at("\n"):
		s.skip(1)
	case s.at("\r\n"):
		s.skip(2)
	}
}

// endOfLine skips blanks, a comment and the newline.
func (s *scanner) endOfLine() error {
	s.blanks()
	if s.at("#") {
		n := bytes.IndexByte(s.rest, '\n')
		if n < 0 {
			n = len(s.rest)
		}
		if n > 0 && n < len(s.rest) && s.rest[n-1] == '\r' {
			n--
		}
		for _, c := range s.rest[:n] {
			if control(c) {
				return fmt.Errorf("has a comment with the control character %#02x", c)
			}
		}
		s.rest = s.rest[n:]
	}
	if !s.atNewline() {
		return fmt.Errorf("goes on with %s where it should end", s.shown())
	}
	s.newline()
	return nil
}

// shown is the beginning of the unread text, for messages.
func (s *scanner) shown() string {
	b := s.rest
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		b = b[:i]
	}
	return clip(string(b[:min(len(b), 64)]))
}

// clip quotes a text of the document for a message.
func clip(s string) string { return fmt.Sprintf("%.40q", s) }

// control tells what TOML allows nowhere but in escapes; newlines are seen to before.
func control(c byte) bool { return c < 0x20 && c != '\t' || c == 0x7f }

func (s *scanner) header() error {
	s.skip(1)
	if s.at("[") {
		return errors.New("begins a list of tables; the format has [data] alone")
	}
	s.blanks()
	key, err := s.key()
	if err != nil {
		return err
	}
	s.blanks()
	if s.at(".") || key != "data" {
		return fmt.Errorf("begins the table %s; the format has [data] alone", clip(key))
	}
	if !s.at("]") {
		return fmt.Errorf("has %s where the ] of [data] should be", s.shown())
	}
	s.skip(1)
	return nil
}

func (s *scanner) pair(table map[string]string) error {
	key, err := s.key()
	if err != nil {
		return err
	}
	s.blanks()
	switch {
	case s.at("."):
		return fmt.Errorf("has a dotted key that begins with %s; keys of the format are plain, and quoted where they have "+
			"a dot", clip(key))
	case !s.at("="):
		return fmt.Errorf("has no = after the key %s", clip(key))
	}
	if _, twice := table[key]; twice {
		return fmt.Errorf("has the key %s a second time", clip(key))
	}
	if len(table) == maxKeys {
		return fmt.Errorf("has more than %d keys in a table", maxKeys)
	}
	s.skip(1)
	s.blanks()
	value, ok, err := s.text(true)
	if err != nil {
		return fmt.Errorf("in the value of %s: %w", clip(key), err)
	}
	if !ok {
		return fmt.Errorf("has a value of %s that is not a string: %s", clip(key), s.shown())
	}
	table[key] = value
	return nil
}

func (s *scanner) key() (string, error) {
	key, quoted, err := s.text(false)
	if err != nil {
		return "", fmt.Errorf("in a key: %w", err)
	}
	if !quoted {
		n := 0
		for n < len(s.rest) && bare(s.rest[n]) {
			n++
		}
		if n == 0 {
			return "", fmt.Errorf("has %s where a key should be", s.shown())
		}
		key, s.rest = string(s.rest[:min(n, maxKey+1)]), s.rest[n:]
	}
	if len(key) > maxKey {
		return "", fmt.Errorf("has a key of more than %d bytes: %s", maxKey, clip(key))
	}
	return key, nil
}

func bare(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

// text reads a string of whichever kind, false if there is none. Keys are never of several lines.
func (s *scanner) text(multi bool) (string, bool, error) {
	var out string
	var err error
	switch {
	case s.at(`'''`) && multi:
		out, err = s.literalLines()
	case s.at(`"""`) && multi:
		out, err = s.basic(true)
	case s.at(`'`):
		out, err = s.literal()
	case s.at(`"`):
		out, err = s.basic(false)
	default:
		return "", false, nil
	}
	return out, true, err
}

func (s *scanner) literal() (string, error) {
	s.skip(1)
	for n, c := range s.rest {
		switch {
		case c == '\'':
			out := string(s.rest[:n])
			s.skip(n + 1)
			return out, nil
		case control(c):
			return "", fmt.Errorf("a '…' string has the control character %#02x", c)
		}
	}
	return "", errors.New("a '…' string has no end")
}

func (s *scanner) literalLines() (string, error) {
	s.skip(3)
	s.newline()
	n := bytes.Index(s.rest, []byte(`'''`))
	if n < 0 {
		return "", errors.New("a '''…''' string has no end")
	}
	n += s.more(n+3, '\'')
	out := s.rest[:n]
	for i, c := range out {
		if control(c) && c != '\n' && (c != '\r' || i+1 == n || out[i+1] != '\n') {
			return "", fmt.Errorf("a '''…''' string has the control character %#02x", c)
		}
	}
	s.skip(n + 3)
	return strings.ReplaceAll(string(out), "\r\n", "\n"), nil
}

// more counts up to two quotes that come before the three that end a string of several lines.
func (s *scanner) more(at int, quote byte) int {
	n := 0
	for n < 2 && at+n < len(s.rest) && s.rest[at+n] == quote {
		n++
	}
	return n
}

// basic reads a string with escapes.
func (s *scanner) basic(lines bool) (string, error) {
	s.skip(1)
	if lines {
		s.skip(2)
		s.newline()
	}
	var out strings.Builder
	for len(s.rest) > 0 {
		n := 0
		for n < len(s.rest) && s.rest[n] != '"' && s.rest[n] != '\\' && !control(s.rest[n]) {
			n++
		}
		out.Write(s.rest[:n])
		s.rest = s.rest[n:]
		switch {
		case lines && s.at(`"""`):
			n := s.more(3, '"')
			out.Write(s.rest[:n])
			s.rest = s.rest[n+3:]
			return out.String(), nil
		case !lines && s.at(`"`):
			s.rest = s.rest[1:]
			return out.String(), nil
		case s.at(`"`):
			out.WriteByte('"')
			s.rest = s.rest[1:]
		case lines && len(s.rest) > 0 && s.atNewline():
			out.WriteByte('\n')
			s.newline()
		case s.at(`\`):
			if err := s.escape(&out, lines); err != nil {
				return "", err
			}
		case len(s.rest) > 0:
			return "", fmt.Errorf(`a "…" string has the control character %#02x`, s.rest[0])
		}
	}
	return "", errors.New(`a "…" string has no end`)
}

var escapes = map[byte]byte{'b': '\b', 't': '\t', 'n': '\n', 'f': '\f', 'r': '\r', '"': '"', '\\': '\\'}

func (s *scanner) escape(out *strings.Builder, lines bool) error {
	s.rest = s.rest[1:]
	if len(s.rest) == 0 {
		return errors.New(`a \ ends the text`)
	}
	c := s.rest[0]
	if b, ok := escapes[c]; ok {
		out.WriteByte(b)
		s.rest = s.rest[1:]
		return nil
	}
	switch {
	case c == 'u':
		return s.scalar(out, 4)
	case c == 'U':
		return s.scalar(out, 8)
	case lines && s.continued():
		return nil
	}
	return fmt.Errorf(`a \ comes before %s, which is no escape`, s.shown())
}

// continued skips the blanks and newlines after a backslash that ends a line; false if it does not end one.
func (s *scanner) continued() bool {
	before := *s
	s.blanks()
	if len(s.rest) == 0 || !s.atNewline() {
		*s = before
		return false
	}
	for len(s.rest) > 0 && (s.atNewline() || s.at(" ") || s.at("\t")) {
		s.newline()
		s.blanks()
	}
	return true
}

// scalar reads the digits of \u and \U.
func (s *scanner) scalar(out *strings.Builder, digits int) error {
	var r rune
	for i := 1; i <= digits; i++ {
		if i >= len(s.rest) {
			return errors.New(`\u is cut off`)
		}
		v := strings.IndexByte("0123456789abcdef", s.rest[i]|0x20)
		if v < 0 || s.rest[i] < '0' {
			return fmt.Errorf(`\u takes %d hexadecimal digits`, digits)
		}
		if r = r<<4 | rune(v); r > utf8.MaxRune { //nolint:gosec // below 16
			return errors.New(`\U names no character`)
		}
	}
	if !utf8.ValidRune(r) {
		return errors.New(`\u names half a surrogate pair, which is no character`)
	}
	out.WriteRune(r)
	s.rest = s.rest[digits+1:]
	return nil
}
