// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"

	"golang.org/x/crypto/argon2"
)

// The header: magic, how the operator's key is derived, salt, nonce, the file's key encrypted.
const (
	magic     = "coco-kbs-store 1"
	saltSize  = 16
	nonceSize = 12
	tagSize   = 16
	keySize   = 32
	saltAt    = len(magic) + 1
	nonceAt   = saltAt + saltSize
	wrapAt    = nonceAt + nonceSize
	headSize  = int64(wrapAt + keySize + tagSize)

	byKeyFile    = 1
	byPassphrase = 2

	// MinKey is the shortest key file, MinPassphrase the shortest passphrase.
	MinKey        = 32
	MinPassphrase = 12
)

// Argon2id with 19 MiB and three passes (RFC 9106; OWASP's least memory with one pass more).
const (
	argonTime, argonMemory, argonThreads = 3, 19 << 10, 1
)

// Secret is the operator's key: the content of a key file, or a passphrase.
type Secret struct{ KeyFile, Passphrase []byte }

// Check refuses secrets that are absent, double or short.
func (s Secret) Check() error {
	switch {
	case (len(s.KeyFile) > 0) == (len(s.Passphrase) > 0):
		return errors.New("the store needs either a key file or a passphrase")
	case len(s.KeyFile) > 0 && len(s.KeyFile) < MinKey:
		return fmt.Errorf("the store's key file has %d bytes; random ones of at least %d are needed", len(s.KeyFile), MinKey)
	case len(s.Passphrase) > 0 && len(s.Passphrase) < MinPassphrase:
		return fmt.Errorf("the store's passphrase has less than %d characters", MinPassphrase)
	}
	return nil
}

// String hides the secret.
func (s Secret) String() string { return "[redacted]" }

// GoString hides the secret.
func (s Secret) GoString() string { return "[redacted]" }

// derive returns the key that encrypts the file's key.
func (s Secret) derive(how byte, salt []byte) ([]byte, error) {
	switch {
	case how == byKeyFile && len(s.KeyFile) > 0:
		return hkdf.Key(sha256.New, s.KeyFile, salt, magic, keySize)
	case how == byPassphrase && len(s.Passphrase) > 0:
		return argon2.IDKey(s.Passphrase, salt, argonTime, argonMemory, argonThreads, keySize), nil
	case how == byKeyFile:
		return nil, fmt.Errorf("%w: it was made with a key file", ErrKey)
	case how == byPassphrase:
		return nil, fmt.Errorf("%w: it was made with a passphrase", ErrKey)
	}
	return nil, fmt.Errorf("%w: no store of this version", ErrKey)
}

// create makes an empty file.
func create(path string, secret Secret) (err error) {
	if err := secret.Check(); err != nil {
		return err
	}
	how := byte(byKeyFile)
	if len(secret.Passphrase) > 0 {
		how = byPassphrase
	}
	random := make([]byte, saltSize+nonceSize+keySize)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	defer clear(random[saltSize+nonceSize:])
	head := slices.Concat([]byte(magic), []byte{how}, random[:saltSize+nonceSize])
	kek, err := secret.derive(how, head[saltAt:nonceAt])
	if err != nil {
		return err
	}
	defer clear(kek)
	aead, err := gcm(kek)
	if err != nil {
		return err
	}
	head = aead.Seal(head, head[nonceAt:wrapAt], random[saltSize+nonceSize:], head[:nonceAt])
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(head)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path+".tmp"))
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(path)
}

// openHead decrypts the file's key.
func openHead(head []byte, secret Secret) (cipher.AEAD, error) {
	if err := secret.Check(); err != nil {
		return nil, err
	}
	if string(head[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: it is no store", ErrKey)
	}
	kek, err := secret.derive(head[len(magic)], head[saltAt:nonceAt])
	if err != nil {
		return nil, err
	}
	defer clear(kek)
	aead, err := gcm(kek)
	if err != nil {
		return nil, err
	}
	key, err := aead.Open(nil, head[nonceAt:wrapAt], head[wrapAt:], head[:nonceAt])
	if err != nil {
		return nil, ErrKey
	}
	defer clear(key)
	return gcm(key)
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// seal makes a record: length of the encrypted part, nonce, checksum of both, the encrypted part. The checksum tells a
// damaged length from a record that was written in part.
func seal(aead cipher.AEAD, number uint64, before [tagSize]byte, m meta, value []byte) ([]byte, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if len(text) > 0xFFFF || 2+len(text)+len(value)+tagSize > maxRecord {
		return nil, fmt.Errorf("%.80q: the value or its name is too long", m.Key)
	}
	plain := slices.Concat(binary.BigEndian.AppendUint16(nil, uint16(len(text))), text, value) //nolint:gosec // checked
	defer clear(plain)
	head := binary.BigEndian.AppendUint32(nil, uint32(len(plain)+tagSize)) //nolint:gosec // at most maxRecord
	nonce := make([]byte, nonceSize)
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	head = append(head, nonce...)
	head = binary.BigEndian.AppendUint32(head, crc32.ChecksumIEEE(head))
	return aead.Seal(head, nonce, plain, additional(number, before, head)), nil
}
