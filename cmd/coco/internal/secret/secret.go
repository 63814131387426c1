// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package secret has the commands for sealed secrets: texts that may lie in a cluster, and that only a guest opens.
package secret

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/attestation/sealed"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/cmd/coco/internal/show"
)

const maxKey = 64 << 10

// Command returns coco secret.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secret",
		Short: "Seal secrets so that only a guest can open them",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(keygenCommand(), sealCommand(), inspectCommand(), unsealCommand())
	return cmd
}

func keygenCommand() *cobra.Command {
	var kid string
	cmd := &cobra.Command{
		Use:   "keygen NAME",
		Short: "Make a signer's key",
		Long: "Makes a key of P-256 and writes NAME.private.jwk, which only its owner may read, and NAME.public.jwk.\n" +
			"Store the public one where guests find it by the kid: as a resource of the key broker, if the kid is its URI.",
		Example: "  coco secret keygen --kid kbs:///default/sealed/signer signer\n" +
			"  coco kbs resource put $B default/sealed/signer signer.public.jwk",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			private, public := args[0]+".private.jwk", args[0]+".public.jwk"
			d, x, err := sealed.NewKey(kid)
			if err != nil {
				return err
			}
			return cli.WriteKeyPair(cmd, private, append(d, '\n'), public, append(x, '\n'))
		},
	}
	cmd.Flags().StringVar(&kid, "kid", "", "kid that is written into both files")
	return cmd
}

// sealOptions are the flags of coco secret seal.
type sealOptions struct {
	key, kid, resource, kek, in string
	insecure                    bool
}

func sealCommand() *cobra.Command {
	var o sealOptions
	cmd := &cobra.Command{
		Use:   "seal",
		Short: "Print a sealed secret",
		Long: "Prints a sealed secret. Without --in it is a vault: the secret is the resource, which has to be stored in\n" +
			"the key broker separately. With --in it is an envelope: the secret is in the text, encrypted, and the resource\n" +
			"has the key of 32 bytes for it. CoCo's guest components open vaults, and no envelopes of a key broker.\n\n" +
			"The value goes into a variable or a file of a Kubernetes Secret. A guest opens it only where the pod's policy\n" +
			"names this resource.",
		Example: "  coco secret seal --key signer.private.jwk --resource kbs:///default/db/password\n" +
			"  coco secret seal --key signer.private.jwk --resource kbs:///default/kek/one --kek kek.bin --in tls.key",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := o.seal(cmd)
			if err == nil {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.key, "key", "", "file with the signer's private key (JWK)")
	f.StringVar(&o.kid, "kid", "", "where guests find the public key (default: the kid in the file)")
	f.StringVar(&o.resource, "resource", "", "resource of the key broker, such as kbs:///default/db/password")
	f.StringVar(&o.kek, "kek", "", "file with the content of the resource, 32 bytes; for an envelope")
	f.StringVar(&o.in, "in", "", `file with the secret, "-" is stdin; for an envelope`)
	f.BoolVar(&o.insecure, "insecure-unsigned", false,
		"print the form without a signature, which guests open only with a switch of that name")
	cli.Require(cmd, "resource")
	cmd.MarkFlagsRequiredTogether("kek", "in")
	cmd.MarkFlagsMutuallyExclusive("insecure-unsigned", "key")
	cmd.MarkFlagsOneRequired("insecure-unsigned", "key")
	return cmd
}

func (o *sealOptions) seal(cmd *cobra.Command) (string, error) {
	signer := sealed.Signer{InsecureUnsigned: o.insecure}
	if o.insecure {
		if o.kid != "" {
			return "", errors.New("--kid goes with --key")
		}
		cmd.PrintErrln("coco: insecure: whoever can change this text chooses among the resources that its place allows")
	} else {
		text, err := cli.ReadFile(o.key, maxKey)
		if err != nil {
			return "", fmt.Errorf("--key: %w", err)
		}
		var kid string
		if signer.Key, kid, err = sealed.ParsePrivateKey(text); err != nil {
			return "", fmt.Errorf("--key %s: %w", o.key, err)
		}
		if signer.Kid = o.kid; o.kid == "" {
			signer.Kid = kid
		}
		if signer.Kid == "" {
			return "", fmt.Errorf("%s names no kid: give --kid, such as kbs:///default/sealed/signer", o.key)
		}
	}
	if o.in == "" {
		return signer.SealVault(o.resource)
	}
	kek, err := cli.ReadFile(o.kek, maxKey)
	if err != nil {
		return "", fmt.Errorf("--kek: %w", err)
	}
	value, err := cli.Input(cmd, o.in, sealed.MaxText)
	if err != nil {
		return "", fmt.Errorf("--in: %w", err)
	}
	return signer.SealEnvelope(o.resource, kek, value)
}

// description is the output of inspect.
type description struct {
	Kind     sealed.Kind `json:"type"`
	Resource string      `json:"resource"`
	Kid      string      `json:"kid,omitempty"`
	Signed   bool        `json:"signed"`
	Verified bool        `json:"verified"`
}

func inspectCommand() *cobra.Command {
	var key string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect [FILE]",
		Short: "Say what a sealed secret names, and whether its signature is right",
		Long: "Reads a sealed secret from a file or stdin. Without --key the signature is not verified, and the output\n" +
			"says so.\n\n" +
			exits,
		Example: "  coco secret inspect --key signer.public.jwk sealed.txt",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := read(cmd, args)
			if err != nil {
				return err
			}
			s, err := sealed.Parse(text)
			if err == nil && key != "" {
				var o sealed.Opener
				if o.Key, err = publicKey(key); err == nil {
					err = o.Verify(cmd.Context(), s)
				}
			}
			if err != nil {
				return coded(err)
			}
			d := description{s.Kind, "kbs:///" + s.Resource, s.Kid, !s.Unsigned(), key != ""}
			if asJSON {
				return show.JSON(cmd.OutOrStdout(), d)
			}
			return d.print(cmd)
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "file with the signer's public key (JWK); the signature is then verified")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (d description) print(cmd *cobra.Command) error {
	signature := "of " + d.Kid + ", not verified (no --key)"
	switch {
	case !d.Signed:
		signature = "none"
	case d.Verified:
		signature = "of " + d.Kid + ", verified"
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "type:      %s\nresource:  %s\nsignature: %s\n",
		d.Kind, d.Resource, signature)
	return err
}

func unsealCommand() *cobra.Command {
	var key, repository, allow, out string
	var insecure bool
	cmd := &cobra.Command{
		Use:   "unseal [FILE]",
		Short: "Open a sealed secret with files instead of a key broker",
		Long: "Opens a sealed secret as a guest does, with resources from a directory: kbs:///a/b/c is the file a/b/c\n" +
			"in it. Trustee's store of files has this layout.\n\n" + exits,
		Example: "  coco secret unseal --repository ./repository --key signer.public.jwk \\\n" +
			"    --allow kbs:///default/db/password sealed.txt",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := read(cmd, args)
			if err != nil {
				return err
			}
			root, err := os.OpenRoot(repository)
			if err != nil {
				return fmt.Errorf("--repository: %w", err)
			}
			defer root.Close()
			o := sealed.Opener{InsecureUnsigned: insecure, Fetch: func(_ context.Context, path string) ([]byte, error) {
				return root.ReadFile(filepath.FromSlash(path))
			}}
			if key != "" {
				if o.Key, err = publicKey(key); err != nil {
					return err
				}
			}
			value, err := o.Open(cmd.Context(), text, allow)
			switch {
			case err != nil:
				return coded(err)
			case out != "":
				return cli.WriteSecret(out, value)
			}
			_, err = cmd.OutOrStdout().Write(value)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "file with the signer's public key (JWK)")
	f.StringVar(&repository, "repository", "", "directory with the resources")
	f.StringVar(&allow, "allow", "", "resource that may be opened, as a policy names it")
	f.StringVarP(&out, "out", "o", "", "write to this file, which only its owner may read, instead of stdout")
	f.BoolVar(&insecure, "insecure-unsigned", false, "open the form without a signature too")
	cli.Require(cmd, "repository", "allow")
	cmd.MarkFlagsMutuallyExclusive("insecure-unsigned", "key")
	cmd.MarkFlagsOneRequired("insecure-unsigned", "key")
	return cmd
}

const exits = "Exit status: 0, 1 usage or files, 2 not a sealed secret, 3 not signed by this key, 4 not the allowed\n" +
	"resource, 5 the resource is missing, 6 it does not decrypt the envelope."

// coded gives an error its exit status.
func coded(err error) error {
	var e *sealed.Error
	if !errors.As(err, &e) {
		return err
	}
	return cli.Failure{Err: err, Code: map[sealed.Code]int{
		sealed.Malformed: 2, sealed.Algorithm: 2, sealed.Provider: 2, sealed.NoSigner: 3, sealed.Signature: 3,
		sealed.NoKey: 3, sealed.Moved: 4, sealed.Fetch: 5, sealed.Decrypt: 6,
	}[e.Code]}
}

// read reads a sealed text.
func read(cmd *cobra.Command, args []string) (string, error) {
	path := "-"
	if len(args) == 1 {
		path = args[0]
	}
	b, err := cli.Input(cmd, path, sealed.MaxText+2)
	return strings.TrimRight(string(b), "\r\n"), err
}

// publicKey reads the file of --key.
func publicKey(path string) (*ecdsa.PublicKey, error) {
	b, err := cli.ReadFile(path, maxKey)
	if err != nil {
		return nil, fmt.Errorf("--key: %w", err)
	}
	key, err := sealed.ParsePublicKey(b)
	if err != nil {
		return nil, fmt.Errorf("--key %s: %w", path, err)
	}
	return key, nil
}
