// Written by `phi-edge bundle`. onnxruntime-genai behind the same interface as the other targets.
using System;
using System.Collections.Generic;
using System.Linq;
using System.Text;
using System.Threading;
using Microsoft.ML.OnnxRuntimeGenAI;

namespace PhiEdge;

public enum Role { System, User, Assistant }

public sealed record Message(Role Role, string Content);

public enum Finish { Eos, Stop, Length, Cancelled }

/// <summary>How an answer ended; StopString is the one that ended it.</summary>
public sealed record Done(Finish Finish, int Tokens, string? StopString = null);

/// <summary>What to generate: greedily, from messages.</summary>
public sealed record Request(IReadOnlyList<Message> Messages, int MaxNewTokens = 256, IReadOnlyList<string>? Stop = null);

/// <summary>An opened artifact; one request at a time. `folder` is the bundle's model folder.</summary>
public sealed class Phi : IDisposable
{
    public const string ArtifactDigest = "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd";
    public const int ContextTokens = 512;
    private static readonly int[] StopIds = { 257, 261 };

    // A message that contains one of these could forge a turn, so it is refused.
    private static readonly string[] ControlTokens =
    {
        "<s>",
        "<|endoftext|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|end|>",
    };

    private readonly Model model;
    private readonly Tokenizer tokenizer;

    public Phi(string folder)
    {
        // The official builds report usage to their maker unless this is set before they load.
        Environment.SetEnvironmentVariable("ORT_DISABLE_TELEMETRY", "1");
        model = new Model(folder);
        tokenizer = new Tokenizer(model);
    }

    /// <summary>Gives the answer's text piece by piece to `onText`; a cancel takes effect within one token.</summary>
    public Done Generate(Request request, Action<string> onText, CancellationToken cancellation = default)
    {
        if (request.MaxNewTokens < 1)
            throw new ArgumentException($"MaxNewTokens is {request.MaxNewTokens}; give 1 or more");
        var scanner = new StopScanner(request.Stop ?? Array.Empty<string>());
        using var encoded = tokenizer.Encode(Prompt(request.Messages));
        var ids = encoded[0].ToArray();
        var room = Math.Min(request.MaxNewTokens, ContextTokens - ids.Length);
        if (room < 1)
            throw new ArgumentException($"the prompt has {ids.Length} tokens; a context of {ContextTokens} takes fewer");
        using var options = new GeneratorParams(model);
        options.SetSearchOption("max_length", ContextTokens);
        options.SetSearchOption("do_sample", false);
        using var generator = new Generator(model, options);
        using var stream = tokenizer.CreateStream();
        if (cancellation.IsCancellationRequested)
            return new Done(Finish.Cancelled, 0);
        generator.AppendTokens(ids);
        var tokens = 0;
        while (tokens < room && !cancellation.IsCancellationRequested)
        {
            generator.GenerateNextToken();
            var id = generator.GetSequence(0)[^1];
            if (StopIds.Contains(id))
            {
                Show(onText, scanner.Rest());
                return new Done(Finish.Eos, tokens);
            }
            tokens++;
            Show(onText, scanner.Add(stream.Decode(id)));
            if (scanner.Found is not null)
                return new Done(Finish.Stop, tokens, scanner.Found);
        }
        Show(onText, scanner.Rest());
        return new Done(cancellation.IsCancellationRequested ? Finish.Cancelled : Finish.Length, tokens);
    }

    public void Dispose()
    {
        tokenizer.Dispose();
        model.Dispose();
    }

    private static void Show(Action<string> onText, string text)
    {
        if (text.Length > 0)
            onText(text);
    }

    /// <summary>The conversation as the model expects it: perhaps a system message, then user and assistant in turns.</summary>
    public static string Prompt(IReadOnlyList<Message> messages)
    {
        var text = new StringBuilder();
        var expected = Role.User;
        for (var index = 0; index < messages.Count; index++)
        {
            var message = messages[index];
            foreach (var token in ControlTokens)
                if (message.Content.Contains(token, StringComparison.Ordinal))
                    throw new ArgumentException($"a message contains the control token {token}");
            if (index == 0 && message.Role == Role.System)
            {
                text.Append("<|system|>\n").Append(message.Content);
                text.Append("<|end|>\n<|user|>\n");
                continue;
            }
            if (message.Role != expected)
                throw new ArgumentException($"message {index} is {message.Role}, expected {expected}");
            if (message.Role == Role.User)
            {
                if (text.Length == 0)
                    text.Append("<|user|>\n");
                text.Append(message.Content).Append("<|end|>\n<|assistant|>\n");
                expected = Role.Assistant;
            }
            else
            {
                text.Append(message.Content).Append("<|end|>\n<|user|>\n");
                expected = Role.User;
            }
        }
        if (expected != Role.Assistant)
            throw new ArgumentException("the last message must be the user's");
        return text.ToString();
    }
}

/// <summary>Finds stop strings in a text that comes in pieces, and holds back what may be the beginning of one.</summary>
public sealed class StopScanner
{
    private readonly IReadOnlyList<string> stops;
    private string held = "";

    public StopScanner(IReadOnlyList<string> stops)
    {
        if (stops.Any(stop => stop.Length == 0))
            throw new ArgumentException("a stop string is empty");
        this.stops = stops;
    }

    /// <summary>The stop string that was found.</summary>
    public string? Found { get; private set; }

    /// <summary>The part of the text so far that may be shown now. Nothing comes after a stop string.</summary>
    public string Add(string piece)
    {
        if (Found is not null)
            return "";
        held += piece;
        // The stop string that is complete first wins; of several that end together, the longest.
        for (var end = 1; end <= held.Length; end++)
        {
            var seen = held.Substring(0, end);
            var hit = stops.Where(stop => seen.EndsWith(stop, StringComparison.Ordinal)).MaxBy(stop => stop.Length);
            if (hit is null)
                continue;
            Found = hit;
            held = "";
            return seen.Substring(0, end - hit.Length);
        }
        var keep = 0;
        foreach (var stop in stops)
            for (var length = Math.Min(stop.Length - 1, held.Length); length > keep; length--)
                if (held.EndsWith(stop.Substring(0, length), StringComparison.Ordinal))
                    keep = length;
        var shown = held.Substring(0, held.Length - keep);
        held = held.Substring(held.Length - keep);
        return shown;
    }

    /// <summary>What was held back for a stop string that did not come.</summary>
    public string Rest()
    {
        var rest = held;
        held = "";
        return rest;
    }
}
