// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/image/crypt"
	"github.com/coco-shim/coco/internal/strictjson"
)

// maxRequest bounds a request to the key provider.
const maxRequest = 1 << 20

func keyproviderCommand() *cobra.Command {
	var listen string
	var keks []string
	cmd := &cobra.Command{
		Use:   "keyprovider",
		Short: "Serve keys to tools that encrypt images with ocicrypt",
		Long: "Serves ocicrypt's key provider protocol (gRPC, without TLS) until it is ended, so that skopeo, buildah or\n" +
			"nerdctl encrypt and decrypt images with the keys of --kek. Any program that reaches the\n" +
			"address can decrypt with them: listen on the loopback interface or a Unix socket only. With this file in\n" +
			"OCICRYPT_KEYPROVIDER_CONFIG\n\n" +
			`  {"key-providers": {"attestation-agent": {"grpc": "127.0.0.1:50000"}}}` + "\n\n" +
			"skopeo encrypts with --encryption-key provider:attestation-agent:keyid=KID and decrypts with\n" +
			"--decryption-key provider:attestation-agent. Of CoCo's parameters keyid and algorithm are known; keys are never\n" +
			"read from a path that a request names.",
		Example: "  coco image keyprovider --kek kbs:///default/image-kek/app=kek",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			keys, err := readKeys(keks)
			if err != nil {
				return err
			}
			l, err := listenOn(cmd.Context(), listen)
			if err != nil {
				return fmt.Errorf("--listen: %w", err)
			}
			cmd.PrintErrf("coco: the key provider listens on %s\n", l.Addr())
			return serve(cmd.Context(), l, keys)
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:50000", "loopback address and port, or unix:PATH")
	f.StringArrayVar(&keks, "kek", nil, "KID=FILE: a key of 32 bytes and its kid; may be repeated")
	cli.Require(cmd, "kek")
	return cmd
}

// listenOn opens the listener. Other machines must not reach it: the protocol has no authentication.
func listenOn(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return config.Listen(ctx, "unix", path)
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("%s is no address of the loopback interface: the protocol has no authentication", address)
	}
	return config.Listen(ctx, "tcp", address)
}

// serve serves until the context ends.
func serve(ctx context.Context, l net.Listener, keys keyFiles) error {
	s := grpc.NewServer(grpc.MaxRecvMsgSize(maxRequest))
	s.RegisterService(&service, keys)
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	if err := s.Serve(l); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// provider wraps and unwraps keys for the service.
type provider interface {
	wrap(ctx context.Context, request []byte) ([]byte, error)
	unwrap(ctx context.Context, request []byte) ([]byte, error)
}

// service is that of ocicrypt's keyprovider.proto. Its messages have one field each, bytes with number 1, and so are on
// the wire what BytesValue is.
var service = grpc.ServiceDesc{
	ServiceName: "keyprovider.KeyProviderService",
	HandlerType: (*provider)(nil),
	Methods: []grpc.MethodDesc{
		method("WrapKey", provider.wrap), method("UnWrapKey", provider.unwrap),
	},
}

func method(name string, do func(provider, context.Context, []byte) ([]byte, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(
		of any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor,
	) (any, error) {
		var in wrapperspb.BytesValue
		if err := decode(&in); err != nil {
			return nil, err
		}
		p, ok := of.(provider)
		if !ok {
			return nil, status.Error(codes.Internal, "the service is not registered")
		}
		out, err := do(p, ctx, in.GetValue())
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		return wrapperspb.Bytes(out), nil
	}}
}

// wrap encrypts a layer's private options. The answer has the packet.
func (k keyFiles) wrap(ctx context.Context, request []byte) ([]byte, error) {
	m, err := params(request, "keywrap", "keywrapparams")
	if err != nil {
		return nil, err
	}
	secret, err := inBase64(m, "optsdata")
	if err != nil {
		return nil, err
	}
	ec, err := strictjson.Parse(m["ec"])
	if err != nil {
		return nil, fmt.Errorf("ec: %w", err)
	}
	var all map[string][][]byte
	if err := json.Unmarshal(ec["Parameters"], &all); err != nil {
		return nil, errors.New("ec: Parameters are no lists by provider")
	}
	list := all[crypt.Provider]
	if len(list) != 1 {
		return nil, fmt.Errorf("there are %d parameters of provider %s instead of one", len(list), crypt.Provider)
	}
	to, err := k.recipient(ctx, string(list[0]))
	if err != nil {
		return nil, err
	}
	packet, err := crypt.Wrap(secret, to)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"keywrapresults": map[string]any{"annotation": packet}})
}

// recipient reads CoCo's parameters, keyid=KID::algorithm=NAME.
func (k keyFiles) recipient(ctx context.Context, text string) (r crypt.Recipient, err error) {
	for field := range strings.SplitSeq(text, "::") {
		name, value, _ := strings.Cut(field, "=")
		switch name {
		case "keyid":
			r.Kid = value
		case "algorithm":
			if !slices.Contains([]string{crypt.GCM, crypt.CTR}, value) {
				return r, fmt.Errorf("algorithm %.20q: known are %s and %s", value, crypt.GCM, crypt.CTR)
			}
			r.Algorithm = value
		default:
			return r, fmt.Errorf("parameter %.40q: known are keyid and algorithm; keys come from --kek", name)
		}
	}
	if r.Key, err = k.find(ctx, r.Kid); err != nil {
		return r, fmt.Errorf("keyid %.200q: %w", r.Kid, err)
	}
	return r, nil
}

// unwrap decrypts a packet.
func (k keyFiles) unwrap(ctx context.Context, request []byte) ([]byte, error) {
	m, err := params(request, "keyunwrap", "keyunwrapparams")
	if err != nil {
		return nil, err
	}
	packet, err := inBase64(m, "annotation")
	if err != nil {
		return nil, err
	}
	secret, err := crypt.Unwrap(ctx, packet, k.find)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"keyunwrapresults": map[string]any{"optsdata": secret}})
}

// params returns the parameters of a request for an operation.
func params(request []byte, op, name string) (strictjson.Members, error) {
	m, err := strictjson.Parse(request)
	if err != nil {
		return nil, err
	}
	var got string
	if err := m.Text("op", &got); err != nil {
		return nil, err
	}
	if got != op {
		return nil, fmt.Errorf("op %.20q instead of %s", got, op)
	}
	if m, err = strictjson.Parse(m[name]); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return m, nil
}

// inBase64 reads a member that is bytes in base64.
func inBase64(m strictjson.Members, name string) ([]byte, error) {
	var text string
	if err := m.Text(name, &text); err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%s is not in base64", name)
	}
	return b, nil
}
