// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package store keeps the state of a key broker in one encrypted file.
//
// The file is a header and a log of records. A record sets or removes one value. It is encrypted with the file's own
// key (AES-256-GCM) and authenticated together with its number and the tag of the record before it, so that no byte can
// be changed, and no record moved, left out or repeated unseen. The header holds the file's key, encrypted with a key
// that is derived from the operator's: a key file or a passphrase.
//
// A write is acknowledged after fsync. When the file is opened, a last record that is incomplete was never acknowledged
// and is cut off; any other damage is refused. Only a place for each value stays in memory. A file that is mostly
// outdated records is written anew when it is opened, so removed values stay in it, encrypted, until then.
//
// Not noticed is a file that was replaced by an older copy of itself.
package store

import (
	"crypto/cipher"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("no such entry")
	ErrConflict = errors.New("the entry has another version")
	ErrLocked   = errors.New("another process has the store open")
	ErrKey      = errors.New("the key does not open the store, or its header is damaged")
	ErrDamaged  = errors.New("the store is damaged")
)

const (
	recordHead = 4 + nonceSize + 4
	maxRecord  = 16 << 20
	// compactAt is the size below which outdated records do not matter.
	compactAt = 1 << 20
)

// meta is the head of a record's plain text; the value follows it.
type meta struct {
	Bucket  string `json:"b"`
	Key     string `json:"k"`
	Version int    `json:"v"`
	Time    int64  `json:"t"` // seconds
	Removed bool   `json:"d,omitempty"`
}

// place is where a value lies.
type place struct {
	meta
	at, size int64 // of the record
	number   uint64
	before   [tagSize]byte
	length   int // of the value
}

// Entry describes a value.
type Entry struct {
	Key     string    `json:"key"`
	Version int       `json:"version"`
	Size    int       `json:"size"`
	Time    time.Time `json:"time"`
}

// Store is an open store. Its methods may be called by several goroutines.
type Store struct {
	path string
	lock *os.File
	now  func() time.Time

	mu     sync.RWMutex
	file   *os.File // guarded by mu, like all below
	head   []byte
	aead   cipher.AEAD
	end    int64
	number uint64
	last   [tagSize]byte
	index  map[string]place // by bucket and key
	broken error
}

// Open opens a store, or makes one. A second process is refused.
func Open(path string, secret Secret, now func() time.Time) (s *Store, err error) {
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	s = &Store{path: path, lock: lock, now: now}
	defer func() {
		if err != nil {
			s.Close()
			s = nil
		}
	}()
	if err := os.Remove(path + ".new"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return s, err
	}
	if err := s.load(secret); err != nil {
		return s, fmt.Errorf("store %s: %w", path, err)
	}
	live := int64(0)
	for _, p := range s.index {
		live += p.size
	}
	if s.end > compactAt && s.end > 2*live {
		return s, s.compact(secret)
	}
	return s, nil
}

// lockFile takes the lock of a store. The file stays: removing it would let two processes lock two files of one name.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", path, ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// load opens the file and reads its index.
func (s *Store) load(secret Secret) (err error) {
	if _, err := os.Stat(s.path); errors.Is(err, os.ErrNotExist) {
		if err := create(s.path, secret); err != nil {
			return err
		}
	}
	if s.file, err = os.OpenFile(s.path, os.O_RDWR, 0); err != nil {
		return err
	}
	s.head = make([]byte, headSize)
	if _, err := io.ReadFull(s.file, s.head); err != nil {
		return fmt.Errorf("%w: no header", ErrDamaged)
	}
	if s.aead, err = openHead(s.head, secret); err != nil {
		return err
	}
	return s.scan()
}

// scan reads all records.
func (s *Store) scan() error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	s.index, s.end, s.number = map[string]place{}, headSize, 0
	copy(s.last[:], s.head[headSize-tagSize:])
	for s.end < info.Size() {
		plain, size, err := s.record(s.end, s.number, s.last)
		if errors.Is(err, io.ErrUnexpectedEOF) && size == 0 {
			break // written in part, and never acknowledged
		}
		if err != nil {
			return fmt.Errorf("%w: record %d at byte %d: %w", ErrDamaged, s.number, s.end, err)
		}
		p := place{at: s.end, size: size, number: s.number, before: s.last}
		if p.length, err = p.decode(plain); err != nil {
			return fmt.Errorf("%w: record %d: %w", ErrDamaged, s.number, err)
		}
		if _, err := s.file.ReadAt(s.last[:], s.end+size-tagSize); err != nil {
			return err
		}
		s.apply(p)
	}
	return s.file.Truncate(s.end)
}

// apply takes a record into the index.
func (s *Store) apply(p place) {
	s.index[p.Bucket+"\x00"+p.Key] = p
	s.end += p.size
	s.number++
}

// record decrypts a record. Size zero with ErrUnexpectedEOF says that the file ends within it.
func (s *Store) record(at int64, number uint64, before [tagSize]byte) (plain []byte, size int64, err error) {
	head := make([]byte, recordHead)
	n, err := s.file.ReadAt(head, at)
	if n < recordHead {
		return nil, 0, io.ErrUnexpectedEOF
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, 1, err
	}
	length := int64(binary.BigEndian.Uint32(head))
	if crc32.ChecksumIEEE(head[:recordHead-4]) != binary.BigEndian.Uint32(head[recordHead-4:]) || length > maxRecord {
		if s.zeros(at) { // a crash of the machine may leave zeros instead of the record
			return nil, 0, io.ErrUnexpectedEOF
		}
		return nil, 1, errors.New("its head is damaged")
	}
	body := make([]byte, length)
	if n, err := s.file.ReadAt(body, at+recordHead); n < len(body) {
		if errors.Is(err, io.EOF) {
			return nil, 0, io.ErrUnexpectedEOF
		}
		return nil, 1, err
	}
	nonce := head[4 : 4+nonceSize]
	plain, err = s.aead.Open(nil, nonce, body, additional(number, before, head))
	if err != nil {
		return nil, 1, errors.New("it was changed")
	}
	return plain, recordHead + length, nil
}

// zeros tells whether only zeros follow.
func (s *Store) zeros(at int64) bool {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.file.ReadAt(buf, at)
		if slices.ContainsFunc(buf[:n], func(b byte) bool { return b != 0 }) {
			return false
		}
		if err != nil {
			return errors.Is(err, io.EOF)
		}
		at += int64(n)
	}
}

// additional is what a record is authenticated with.
func additional(number uint64, before [tagSize]byte, head []byte) []byte {
	return slices.Concat(binary.BigEndian.AppendUint64(nil, number), before[:], head)
}

// decode reads the head of the plain text, and returns the length of the value.
func (p *place) decode(plain []byte) (int, error) {
	if len(plain) < 2 || len(plain) < 2+int(binary.BigEndian.Uint16(plain)) {
		return 0, errors.New("no head")
	}
	n := int(binary.BigEndian.Uint16(plain))
	return len(plain) - 2 - n, json.Unmarshal(plain[2:2+n], &p.meta)
}

// Put sets a value, and returns its version. A want of zero or more is the version that the value must have before;
// zero means that there must be none.
func (s *Store) Put(bucket, key string, value []byte, want int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.index[bucket+"\x00"+key]
	have := old.Version
	if old.Removed {
		have = 0
	}
	if want >= 0 && want != have {
		return have, fmt.Errorf("%s: %w: %d, not %d", key, ErrConflict, have, want)
	}
	m := meta{Bucket: bucket, Key: key, Version: old.Version + 1, Time: s.now().Unix()}
	return m.Version, s.appendLocked(m, value)
}

// Delete removes a value.
func (s *Store) Delete(bucket, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.index[bucket+"\x00"+key]
	if !ok || old.Removed {
		return fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	return s.appendLocked(meta{bucket, key, old.Version, s.now().Unix(), true}, nil)
}

// appendLocked writes a record. A write that fails is taken back; if that fails too, the store takes no more.
func (s *Store) appendLocked(m meta, value []byte) error {
	if s.broken != nil {
		return s.broken
	}
	record, err := seal(s.aead, s.number, s.last, m, value)
	if err != nil {
		return err
	}
	_, err = s.file.WriteAt(record, s.end)
	if err == nil {
		err = s.file.Sync()
	}
	if err != nil {
		if undo := errors.Join(s.file.Truncate(s.end), s.file.Sync()); undo != nil {
			s.broken = fmt.Errorf("store %s: a write could not be taken back, restart the broker: %w", s.path, undo)
		}
		return fmt.Errorf("store %s: %w", s.path, err)
	}
	p := place{
		meta: m, at: s.end, size: int64(len(record)), number: s.number, before: s.last, length: len(value),
	}
	copy(s.last[:], record[len(record)-tagSize:])
	s.apply(p)
	return nil
}

// Get returns a value and its version.
func (s *Store) Get(bucket, key string) ([]byte, int, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p, ok := s.index[bucket+"\x00"+key]
	if !ok || p.Removed {
		return nil, 0, fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	v, err := s.valueLocked(p)
	return v, p.Version, err
}

func (s *Store) valueLocked(p place) ([]byte, error) {
	plain, _, err := s.record(p.at, p.number, p.before)
	if err != nil {
		return nil, fmt.Errorf("%w: record %d: %w", ErrDamaged, p.number, err)
	}
	return plain[len(plain)-p.length:], nil
}

// List returns the entries of a bucket, by their keys.
func (s *Store) List(bucket string) []Entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []Entry
	for _, p := range s.index {
		if p.Bucket == bucket && !p.Removed {
			out = append(out, Entry{p.Key, p.Version, p.length, time.Unix(p.Time, 0).UTC()})
		}
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// Backup writes the file as it is, which opens with the same key. Writes wait.
func (s *Store) Backup(w io.Writer) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, err := io.Copy(w, io.NewSectionReader(s.file, 0, s.end))
	return err
}

// compact writes the current values into a new file with a key of its own, and opens that.
func (s *Store) compact(secret Secret) error {
	path := s.path + ".new"
	if err := create(path, secret); err != nil {
		return err
	}
	n := &Store{path: path, now: s.now}
	err := n.load(secret)
	for _, id := range slices.Sorted(maps.Keys(s.index)) {
		p := s.index[id]
		var v []byte
		if err == nil && !p.Removed {
			v, err = s.valueLocked(p)
		}
		if err == nil { // a removed entry keeps its version, which must not be used again
			err = n.appendLocked(p.meta, v)
		}
	}
	if n.file != nil {
		n.file.Close()
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	if err := os.Rename(path, s.path); err != nil {
		return err
	}
	if err := syncDir(s.path); err != nil {
		return err
	}
	s.file.Close()
	return s.load(secret)
}

// syncDir makes a file's name survive a crash of the machine.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Close closes the store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.file != nil {
		err = s.file.Close()
	}
	return errors.Join(err, s.lock.Close())
}
