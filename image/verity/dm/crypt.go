// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package dm

import (
	"encoding/hex"
	"fmt"
)

// KeySize is that of AES-256 in XTS mode.
const KeySize = 64

// cryptSector is the unit of encryption. Larger ones cost less.
const cryptSector = 4096

// OpenCrypt makes a device whose content is encrypted with key on the block device backing
// ("major:minor") of the given number of 512-byte sectors. Discarded sectors are visible on backing.
func OpenCrypt(name string, key [KeySize]byte, backing string, sectors uint64) (Device, error) {
	const per = cryptSector / 512
	table := append([]byte("aes-xts-plain64 "), make([]byte, hex.EncodedLen(KeySize))...)
	hex.Encode(table[len(table)-hex.EncodedLen(KeySize):], key[:])
	table = fmt.Appendf(table, " 0 %s 0 3 allow_discards sector_size:%d iv_large_sectors", backing, cryptSector)
	defer clear(table)
	return open(name, request{
		name: name, uuid: "COCO-CRYPT-" + name, flags: flagSecure,
		sectors: sectors / per * per, target: "crypt", table: table,
	})
}
