// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package image has the commands on container images: their signatures, statements on their layers, and the encryption
// of their layers.
//
// Commands on guest images once had this name. Their old names fail and name the new place.
package image

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/image/sign"
)

const maxKey = 64 << 10

// notVerified is the exit status for an image that is not signed as was asked.
const notVerified = 3

// Command returns coco image.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Sign, verify and encrypt container images",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(keygenCommand(), signCommand(), attestCommand(), verifyCommand(),
		encryptCommand(), decryptCommand(), keyproviderCommand(), moved("build"), moved("inspect"))
	return cmd
}

// moved is a command that coco guest has now.
func moved(name string) *cobra.Command {
	return &cobra.Command{
		Use:                name,
		Hidden:             true,
		DisableFlagParsing: true, // the flags are those of another command
		RunE: func(*cobra.Command, []string) error {
			return fmt.Errorf("coco image has no command %s; for guest images run coco guest %s", name, name)
		},
	}
}

func keygenCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "keygen NAME",
		Short: "Make a key that signs images",
		Long: "Makes a key of P-256 and writes NAME.key, which only its owner may read and which has no passphrase, and\n" +
			"NAME.pub. cosign takes NAME.key after cosign import-key-pair, and NAME.pub as it is.",
		Example: "  coco image keygen release",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			private, public := args[0]+".key", args[0]+".pub"
			s, err := sign.NewSigner()
			if err != nil {
				return err
			}
			d, p, err := s.PEM()
			if err != nil {
				return err
			}
			return cli.WriteKeyPair(cmd, private, d, public, p)
		},
	}
}

// signer reads the file of --key.
func signer(path string) (sign.Signer, error) {
	text, err := cli.ReadFile(path, maxKey)
	if err != nil {
		return sign.Signer{}, fmt.Errorf("--key: %w", err)
	}
	s, err := sign.ParseSigner(text)
	if err != nil {
		return sign.Signer{}, fmt.Errorf("--key %s: %w", path, err)
	}
	return s, nil
}
