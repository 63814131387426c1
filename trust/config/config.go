// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package config reads which key broker a pod has from its initdata: from CoCo's files aa.toml and cdh.toml, which may
// both name it. A key that has no effect in coco is refused by its name.
package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/internal/initdata"
)

// Bounds of the deadline for a secret. The shim waits 60 seconds for a container (runtime.create_timeout), so the
// default leaves time for the rest.
const (
	DefaultDeadline = 30 * time.Second
	maxDeadline     = 10 * time.Minute
)

// Broker is a pod's key broker.
type Broker struct {
	URL      string
	CertPEM  string        // its certificate, or those of its CAs
	Key      kbs.Kind      // of the guest's key
	Deadline time.Duration // for one secret, with all attempts
	// Insecure admits evidence of type sample where the platform makes no other: it proves nothing.
	Insecure bool
}

// aa is the part of aa.toml that coco obeys. insecure and deadline are its own.
type aa struct {
	Insecure bool `toml:"insecure"`
	Tokens   struct {
		KBS struct {
			URL      string `toml:"url"`
			Cert     string `toml:"cert"`
			Key      string `toml:"tee_key_algorithm"`
			Deadline string `toml:"deadline"`
		} `toml:"kbs"`
	} `toml:"token_configs"`
}

// cdh is the part of cdh.toml that coco obeys. socket and aa_socket are how CoCo's daemons find each other: examples
// have them, and here there are no such daemons.
type cdh struct {
	Socket string `toml:"socket"`
	AA     struct {
		Socket string `toml:"aa_socket"`
	} `toml:"aa"`
	KBC struct {
		Name string `toml:"name"`
		URL  string `toml:"url"`
		Cert string `toml:"kbs_cert"`
	} `toml:"kbc"`
	Credentials []struct{} `toml:"credentials"` // an empty list, as in examples
	Image       image      `toml:"image"`
}

// Parse reads the files of initdata.
func Parse(files map[string]string) (Broker, error) {
	var a aa
	var c cdh
	err := errors.Join(decode(files, initdata.FileAA, &a), decode(files, initdata.FileCDH, &c))
	if err != nil {
		return Broker{}, err
	}
	if len(c.Credentials) > 0 {
		return Broker{}, fmt.Errorf("%s: credentials is not supported; name secrets in the policy", initdata.FileCDH)
	}
	if n := c.KBC.Name; n != "" && n != "cc_kbc" {
		return Broker{}, fmt.Errorf("%s: kbc.name is %.40q, and cc_kbc alone is supported", initdata.FileCDH, n)
	}
	b := Broker{Key: kbs.Kind(a.Tokens.KBS.Key), Insecure: a.Insecure, Deadline: DefaultDeadline}
	if b.URL, err = same("URL", a.Tokens.KBS.URL, c.KBC.URL); err != nil {
		return Broker{}, err
	}
	if b.CertPEM, err = same("certificate", a.Tokens.KBS.Cert, c.KBC.Cert); err != nil {
		return Broker{}, err
	}
	return b, b.check(a.Tokens.KBS.Deadline)
}

func (b *Broker) check(deadline string) (err error) {
	if b.URL == "" {
		return fmt.Errorf("initdata names no key broker: %s has no token_configs.kbs.url, %s no kbc.url", initdata.FileAA,
			initdata.FileCDH)
	}
	if b.CertPEM == "" {
		return fmt.Errorf("initdata has no certificate of the key broker: %s has no token_configs.kbs.cert, %s no "+
			"kbc.kbs_cert; without one, anybody could answer", initdata.FileAA, initdata.FileCDH)
	}
	if err := b.Key.Check(); err != nil {
		return fmt.Errorf("%s, token_configs.kbs.tee_key_algorithm: %w", initdata.FileAA, err)
	}
	if deadline == "" {
		return nil
	}
	b.Deadline, err = time.ParseDuration(deadline)
	if err != nil || b.Deadline < time.Second || b.Deadline > maxDeadline {
		return fmt.Errorf("%s, token_configs.kbs.deadline: %.40q is no time from 1s to %v", initdata.FileAA, deadline,
			maxDeadline)
	}
	return nil
}

// same returns the value of two files of which at least one has it. They must agree.
func same(what, a, b string) (string, error) {
	a, b = strings.TrimSpace(a), strings.TrimSpace(b)
	if a != "" && b != "" && a != b {
		return "", fmt.Errorf("%s and %s name different brokers: the %s differs", initdata.FileAA, initdata.FileCDH, what)
	}
	if a == "" {
		a = b
	}
	return a, nil
}

// decode reads one file and refuses keys without effect.
func decode(files map[string]string, name string, to any) error {
	text, ok := files[name]
	if !ok {
		return nil
	}
	md, err := toml.Decode(text, to)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var unknown []string
	for _, k := range md.Undecoded() {
		unknown = append(unknown, k.String())
	}
	if len(unknown) == 0 {
		return nil
	}
	slices.Sort(unknown)
	return fmt.Errorf("%s: coco does not know %.200s", name, strings.Join(unknown, ", "))
}
