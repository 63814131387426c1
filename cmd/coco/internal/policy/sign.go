// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/policy/signed"
)

// Bounds of the input.
const (
	maxKey  = 64 << 10
	maxFile = 64 << 20
)

func signCommand() *cobra.Command {
	var key, name string
	var counter uint64
	cmd := &cobra.Command{
		Use:   "sign DIR",
		Short: "Sign the files of a volume, so that a guest takes new ones without a new policy",
		Long: "Writes " + signed.FileName + " into DIR, which holds the files of a ConfigMap, Secret or projected\n" +
			"volume, one for each key. The policy names the public key (coco policy gen --signed). A guest takes a set of\n" +
			"files only with a counter that is not lower than the one it has, and a higher one for other files.\n\n" +
			"The key is a P-256 or Ed25519 key in PKCS #8 form, PEM.",
		Example: "  openssl genpkey -algorithm ed25519 -out owner.key\n" +
			"  openssl pkey -in owner.key -pubout -out owner.pub\n" +
			"  coco policy gen --signed conf=owner.pub deployment.yaml > pinned.yaml\n" +
			"  coco policy sign --key owner.key --for conf --counter 1 conf/\n" +
			"  kubectl create configmap web-conf --from-file conf/",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s := signed.Statement{Name: name, Counter: counter}
			if err := sign(s, key, args[0]); err != nil {
				return fmt.Errorf("policy sign: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "file with the private key")
	f.StringVar(&name, "for", "", "name of the volume in the pod, or destination of a bind mount in the container")
	f.Uint64Var(&counter, "counter", 0, "number of this set of files, which rises with each")
	cli.Require(cmd, "key", "for", "counter")
	return cmd
}

// sign adds the files of a directory to a statement and writes it there.
func sign(s signed.Statement, key, dir string) error {
	signer, err := privateKey(key)
	if err != nil {
		return err
	}
	s.Files = map[string]string{}
	err = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil || rel == signed.FileName {
			return err
		}
		if !e.Type().IsRegular() {
			return fmt.Errorf("%s is no file", p)
		}
		if !strings.ContainsAny(rel[:1], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") {
			return fmt.Errorf("%s would be sent before the signature: begin the name with a letter, digit or underscore", p)
		}
		text, err := cli.ReadFile(p, maxFile)
		sum := sha256.Sum256(text)
		s.Files[filepath.ToSlash(rel)] = hex.EncodeToString(sum[:])
		return err
	})
	if err != nil {
		return err
	}
	if len(s.Files) == 0 {
		return fmt.Errorf("%s has no files", dir)
	}
	text, err := s.Sign(signer)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, signed.FileName), text, 0o644)
}

func block(file string) ([]byte, error) {
	text, err := cli.ReadFile(file, maxKey)
	if err != nil {
		return nil, err
	}
	b, _ := pem.Decode(text)
	if b == nil {
		return nil, fmt.Errorf("%s has no PEM block", file)
	}
	return b.Bytes, nil
}

func privateKey(file string) (crypto.Signer, error) {
	der, err := block(file)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: a key of type %T signs nothing", file, key)
	}
	return signer, nil
}

// signedVolumes are the values of --signed: public keys by volumes.
type signedVolumes struct{ keys *map[string][]string }

// Set takes VOLUME=FILE and reads the file.
func (v signedVolumes) Set(value string) error {
	name, file, ok := strings.Cut(value, "=")
	if !ok {
		return errors.New("want VOLUME=FILE")
	}
	der, err := block(file)
	if err == nil {
		_, err = x509.ParsePKIXPublicKey(der)
	}
	if err != nil {
		return err
	}
	if *v.keys == nil {
		*v.keys = map[string][]string{}
	}
	(*v.keys)[name] = append((*v.keys)[name], base64.StdEncoding.EncodeToString(der))
	return nil
}

// String is the default, in the help.
func (signedVolumes) String() string { return "" }

// Type is the word for a value, in the help.
func (signedVolumes) Type() string { return "VOLUME=FILE" }
