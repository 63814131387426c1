// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package audit writes what a key broker did into a file that nobody can change unseen.
//
// Each line holds a hash and an entry in JSON. The hash is SHA-256 over the hash of the line before and the entry's
// text, so that a changed, removed or inserted line breaks the chain from there on. Lines that were cut off at the end,
// or a whole chain made anew, show only against a hash that is known from elsewhere: Log.Head.
package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

const maxLine = 64 << 10

// Entry is one thing that happened. It holds no secret.
type Entry struct {
	Number uint64    `json:"number"`
	Time   time.Time `json:"time"`
	// Event is such as "attest", "resource" or "admin".
	Event string `json:"event"`
	// Result is "ok" or the code of the refusal.
	Result string            `json:"result"`
	Fields map[string]string `json:"fields,omitempty"`
}

// Head is the end of a chain.
type Head struct {
	Number uint64 `json:"number"` // entries
	Hash   string `json:"hash"`
}

var start = strings.Repeat("0", 2*sha256.Size)

// link returns the hash of an entry.
func link(before string, text []byte) string {
	h := sha256.New()
	h.Write([]byte(before))
	h.Write(text)
	return hex.EncodeToString(h.Sum(nil))
}

// Log is an audit file that is open for writing. Its methods may be called by several goroutines.
type Log struct {
	now func() time.Time

	mu   sync.Mutex
	file *os.File
	head Head
}

// Open verifies a file, or makes it. A last line that a crash left incomplete is noted by an entry, and stays.
func Open(path string, now func() time.Time) (*Log, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	r, err := Verify(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("audit %s: %w", path, err)
	}
	l := &Log{now: now, file: f, head: r.Head}
	if r.Tail > 0 || r.open {
		_, err = f.WriteString("\n")
	}
	if r.Tail > 0 && err == nil {
		err = l.Write("audit", recovered, map[string]string{"bytes": fmt.Sprint(r.Tail)})
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

// recovered is the result of an entry after an incomplete line.
const recovered = "incomplete-line"

// Write adds an entry.
func (l *Log) Write(event, result string, fields map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	text, err := json.Marshal(Entry{l.head.Number, l.now().UTC(), event, result, fields})
	if err != nil {
		return err
	}
	if len(text) > maxLine-2*sha256.Size-2 {
		return errors.New("an audit entry is too long")
	}
	hash := link(l.head.Hash, text)
	if _, err := l.file.WriteString(hash + " " + string(text) + "\n"); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	l.head = Head{l.head.Number + 1, hash}
	return nil
}

// Head returns the end of the chain.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Sync writes the file to the disk.
func (l *Log) Sync() error { return l.file.Sync() }

// Close closes the file.
func (l *Log) Close() error { return errors.Join(l.file.Sync(), l.file.Close()) }

// Report says what Verify has found.
type Report struct {
	Head Head `json:"head"`
	// Incomplete counts lines that a crash has cut short, Tail the bytes of such a line at the end.
	Incomplete int `json:"incomplete"`
	Tail       int `json:"tail"`

	open   bool              // the last line lacks its end
	hashes map[uint64]string // by the number of entries up to there; only those that a caller asks about
	wanted map[uint64]bool
}

// Verify checks the chain of a file.
func Verify(r io.Reader, known ...Head) (Report, error) {
	rep := Report{Head: Head{Hash: start}, hashes: map[uint64]string{0: start}, wanted: map[uint64]bool{}}
	for _, k := range known {
		rep.wanted[k.Number] = true
	}
	in := bufio.NewReaderSize(r, maxLine)
	for damaged, n := false, 1; ; n++ {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			if damaged {
				return rep, fmt.Errorf("line %d was changed", n-1)
			}
			if e, hash, ok := rep.read(line); ok { // only the end of the line is missing
				rep.open, rep.Head = true, Head{e.Number + 1, hash}
				rep.hashes[e.Number+1] = hash
			} else {
				rep.Tail = len(line)
			}
			return rep, rep.compare(known)
		}
		if err != nil {
			return rep, fmt.Errorf("line %d: %w", n, err)
		}
		e, hash, ok := rep.read(line[:len(line)-1])
		switch {
		case ok && damaged != (e.Result == recovered && e.Event == "audit"):
			return rep, fmt.Errorf("line %d was changed", n-1)
		case ok:
			damaged = false
			rep.Head = Head{e.Number + 1, hash}
			if rep.wanted[e.Number+1] {
				rep.hashes[e.Number+1] = hash
			}
		case damaged:
			return rep, fmt.Errorf("line %d was changed", n-1)
		default: // the next line must say that a crash cut this one short
			damaged = true
			rep.Incomplete++
		}
	}
}

// read checks one line against the head.
func (r *Report) read(line []byte) (e Entry, hash string, ok bool) {
	h, text, found := bytes.Cut(line, []byte(" "))
	if !found || string(h) != link(r.Head.Hash, text) || json.Unmarshal(text, &e) != nil || e.Number != r.Head.Number {
		return e, "", false
	}
	return e, string(h), true
}

// compare looks for the heads that are known from elsewhere.
func (r *Report) compare(known []Head) error {
	for _, k := range known {
		if r.hashes[k.Number] != k.Hash {
			return fmt.Errorf("entry %d is missing, or not the one that was written: lines were cut off, or all made anew",
				k.Number)
		}
	}
	return nil
}
