// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ident checks identifiers, and makes short ones. It uses no regular expressions: these forms, with their
// counted repetitions, took 140 KB each in every shim, and part of each guest's boot.
package ident

import (
	"crypto/sha256"
	"encoding/hex"
)

// DeviceForm describes Device in messages.
const DeviceForm = "^[a-z0-9-]{1,20}$"

// MaxID is the length of the longest ID.
const MaxID = 128

// ID tells whether s is what containerd takes for an id: up to 128 letters, digits, '_', '.' and
// '-', the first of them a letter or digit.
func ID(s string) bool {
	if s == "" || len(s) > MaxID {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return true
}

// Device tells whether s names a device in a VMM: up to 20 lower-case letters, digits and '-'. A
// virtio disk has 20 bytes for its serial, and QEMU 31 for the name of a block node.
func Device(s string) bool {
	if s == "" || len(s) > 20 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// Hash16 is a short identifier for any text: the first 16 hexadecimal digits of its SHA-256.
func Hash16(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}
